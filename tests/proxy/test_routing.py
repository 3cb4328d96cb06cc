"""Every row is a request as it is known before it is tried, and where it goes."""

from itertools import product

import pytest

from proxy.routing import Facts, Mode, Plan, Reason, Target, plan, turns_to_upstream

LOCAL, UPSTREAM = Target.LOCAL, Target.UPSTREAM


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(Mode.OFF, served_here=True), Plan(LOCAL, Reason.SERVED_HERE)),
        (Facts(Mode.OFF, served_here=False), Plan(LOCAL, Reason.SERVED_HERE)),
        (Facts(Mode.FALLBACK, served_here=True), Plan(LOCAL, Reason.SERVED_HERE, otherwise=True)),
        (Facts(Mode.FALLBACK, served_here=False), Plan(UPSTREAM, Reason.UNKNOWN_HERE)),
        (Facts(Mode.FALLBACK, served_here=False, served_upstream=False), Plan(LOCAL, Reason.SERVED_HERE)),
        (Facts(Mode.FALLBACK, served_here=False, available=False), Plan(UPSTREAM, Reason.UNKNOWN_HERE)),
        (Facts(Mode.FALLBACK, served_here=True, ready=False), Plan(UPSTREAM, Reason.LOADING, otherwise=True)),
        (Facts(Mode.FALLBACK, served_here=True, ready=False, available=False), Plan(LOCAL, Reason.SERVED_HERE)),
        (
            Facts(Mode.FALLBACK, served_here=True, predicted_wait=9, longest_wait=5),
            Plan(LOCAL, Reason.SERVED_HERE, otherwise=True),
        ),
        (
            Facts(Mode.OVERFLOW, served_here=True, predicted_wait=9, longest_wait=5),
            Plan(UPSTREAM, Reason.LONG_WAIT, otherwise=True),
        ),
        (
            Facts(Mode.OVERFLOW, served_here=True, predicted_wait=5, longest_wait=5),
            Plan(LOCAL, Reason.SERVED_HERE, otherwise=True),
        ),
        (
            Facts(Mode.OVERFLOW, served_here=True, predicted_wait=9, longest_wait=5, available=False),
            Plan(LOCAL, Reason.SERVED_HERE),
        ),
        (Facts(Mode.FIRST, served_here=True), Plan(UPSTREAM, Reason.MODE, otherwise=True)),
        (Facts(Mode.FIRST, served_here=True, available=False), Plan(LOCAL, Reason.BREAKER_OPEN)),
        (Facts(Mode.FIRST, served_here=False), Plan(UPSTREAM, Reason.UNKNOWN_HERE)),
        (Facts(Mode.FIRST, served_here=True, served_upstream=False), Plan(LOCAL, Reason.SERVED_HERE)),
        (Facts(Mode.ONLY, served_here=False), Plan(UPSTREAM, Reason.MODE)),
        (Facts(Mode.ONLY, served_here=False, served_upstream=False), Plan(UPSTREAM, Reason.MODE)),
        (Facts(Mode.FIRST, served_here=True, wish=LOCAL), Plan(LOCAL, Reason.ROUTE_HEADER)),
        (Facts(Mode.FALLBACK, served_here=True, wish=UPSTREAM), Plan(UPSTREAM, Reason.ROUTE_HEADER)),
        (Facts(Mode.ONLY, served_here=False, local_only=True), Plan(LOCAL, Reason.LOCAL_ONLY)),
    ],
)
def test_the_plan_of_a_request(facts: Facts, expected: Plan) -> None:
    assert plan(facts) == expected


def test_what_is_marked_local_only_never_leaves_whatever_else_is_true() -> None:
    for served_here, ready, served_upstream, available in product([True, False], repeat=4):
        for mode, wish in product(Mode, [None, *Target]):
            decided = plan(
                Facts(mode, served_here, ready, 9.0, 5.0, served_upstream, available, wish=wish, local_only=True)
            )
            assert (decided.target, decided.otherwise) == (LOCAL, False)


@pytest.mark.parametrize("refusal", [Reason.LOADING, Reason.FAILING, Reason.OUT_OF_MEMORY])
def test_what_cannot_be_answered_here_falls_back(refusal: Reason) -> None:
    assert [mode for mode in Mode if turns_to_upstream(mode, refusal)] == [Mode.FALLBACK, Mode.OVERFLOW]


def test_only_overflow_sends_away_what_would_be_answered_here_later() -> None:
    assert [mode for mode in Mode if turns_to_upstream(mode, Reason.QUEUE_FULL)] == [Mode.OVERFLOW]
