"""The circuit breaker, driven by hand."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.breaker import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, Breaker, BreakerState


def broken(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.admit(at)
        breaker.failed(at)
    return breaker


def test_it_breaks_after_five_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(0)
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed(0)
    assert breaker.state(0) is BreakerState.CLOSED

    breaker.failed(0)

    assert breaker.state(0) is BreakerState.OPEN
    assert not breaker.admit(0)
    assert breaker.retry_in(0) == FIRST_PAUSE


def test_after_the_pause_one_request_tries_and_the_others_wait_for_what_becomes_of_it() -> None:
    breaker = broken()

    assert [breaker.admit(FIRST_PAUSE) for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.admit(FIRST_PAUSE) for _ in range(3)] == [True, True, True]


def test_each_failed_try_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now, pauses = broken(), 0.0, []
    for _ in range(7):
        now += breaker.retry_in(now)
        assert breaker.admit(now)
        breaker.failed(now)
        pauses.append(breaker.retry_in(now))

    assert pauses == [2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_try_whose_client_left_makes_room_for_another() -> None:
    breaker = broken()
    assert breaker.admit(FIRST_PAUSE)
    breaker.left()

    assert breaker.admit(FIRST_PAUSE)


def test_failures_of_requests_from_before_it_broke_do_not_lengthen_the_pause() -> None:
    breaker = broken()
    breaker.failed(0.5)

    assert breaker.retry_in(0.5) == FIRST_PAUSE - 0.5


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["admit", "succeeded", "failed", "left"])), max_size=200))
def test_whatever_happens_no_second_probe_is_in_flight_and_no_pause_is_longer_than_the_bound(
    events: list[tuple[float, str]],
) -> None:
    breaker, now, in_flight = Breaker(), 0.0, 0
    for passed, event in events:
        now += passed
        if event == "admit":
            probing = breaker.state(now) is not BreakerState.CLOSED
            if breaker.admit(now):
                assert not (probing and in_flight)
                in_flight += probing
        else:
            breaker.failed(now) if event == "failed" else getattr(breaker, event)()
            in_flight = 0
        assert breaker.retry_in(now) <= LONGEST_PAUSE


def test_an_upstream_that_is_down_half_of_the_time_is_tried_by_one_request_at_a_time() -> None:
    breaker, tries_while_open = Breaker(), 0
    for tenth in range(1200):  # 120 s, ten requests a second; up for 10 s, down for 10 s
        now, up = tenth / 10, tenth // 100 % 2 == 0
        was = breaker.state(now)
        if breaker.admit(now):
            tries_while_open += was is not BreakerState.CLOSED
            breaker.succeeded() if up else breaker.failed(now)

    assert tries_while_open <= 6 * 5  # per outage: after 1, 3, 7 s and once it is up again


def test_a_probe_whose_reply_begins_closes_it_until_that_reply_fails() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(0.0)
    assert breaker.admit(FIRST_PAUSE)

    breaker.began()
    assert breaker.state(FIRST_PAUSE) is BreakerState.CLOSED
    breaker.failed(FIRST_PAUSE)

    assert breaker.retry_in(FIRST_PAUSE) == 2 * FIRST_PAUSE
