"""Turns among upstreams by weight."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.rotation import Rotation


def test_a_heavy_member_comes_more_often_but_not_all_at_once() -> None:
    rotation = Rotation([("a", 5), ("b", 1), ("c", 1)])

    assert "".join(rotation.next("abc") or "" for _ in range(7)) == "aabacaa"


def test_who_is_ejected_is_passed_over_and_nobody_gets_none() -> None:
    rotation = Rotation([("a", 1), ("b", 1)])

    assert [rotation.next(["b"]) for _ in range(3)] == ["b"] * 3
    assert rotation.next([]) is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_in_a_round_everybody_comes_as_often_as_it_weighs(weights: list[int]) -> None:
    rotation = Rotation(list(enumerate(weights)))
    everybody = range(len(weights))

    assert Counter(rotation.next(everybody) for _ in range(sum(weights))) == dict(enumerate(weights))
