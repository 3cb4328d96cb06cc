"""How much of the prompts a step takes, and whose."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.chat.budget import PrefillBudget, allot


def budget_of(*steps: tuple[int, int, float]) -> PrefillBudget:
    """After steps of (rows that decode, prompt tokens, seconds)."""
    budget = PrefillBudget()
    for step in steps:
        budget.record(*step)
    return budget


def test_while_nobody_generates_a_step_takes_many() -> None:
    assert budget_of().tokens(0) == budget_of((4, 0, 1.0), (0, 100, 100.0)).tokens(0) == 512


@pytest.mark.parametrize("steps", [(), ((4, 0, 0.01),), ((0, 100, 0.01),)], ids=["nothing", "decode", "prefill"])
def test_before_both_kinds_of_step_were_seen_it_takes_few(steps: tuple[tuple[int, int, float], ...]) -> None:
    assert budget_of(*steps).tokens(1) == 16


def test_running_answers_slow_down_by_a_fixed_share() -> None:
    """A step of 20 ms may take 34 ms of prompts, at 0.1 ms each."""
    assert budget_of((4, 0, 0.020), (0, 200, 0.020)).tokens(4) == pytest.approx(340, abs=1)


@pytest.mark.parametrize(("seconds", "tokens"), [(1e-6, 16), (10.0, 512)])
def test_it_is_never_too_few_to_come_to_an_end_nor_too_many(seconds: float, tokens: int) -> None:
    assert budget_of((4, 0, seconds), (0, 100, 0.1)).tokens(4) == tokens


def test_mixed_steps_tell_what_a_prompt_token_takes() -> None:
    assert budget_of((4, 0, 0.020), (4, 100, 0.030)).tokens(4) == pytest.approx(340, abs=1)


def test_a_mixed_step_that_was_faster_than_one_without_prompts_tells_nothing() -> None:
    assert budget_of((4, 0, 0.020), (0, 200, 0.020), (4, 100, 0.010)).tokens(4) == pytest.approx(340, abs=1)


def test_one_slow_step_does_not_change_much() -> None:
    """A fifth of the way: from 20 ms to 36 ms."""
    assert budget_of((4, 0, 0.020), (0, 200, 0.040), (4, 0, 0.100)).tokens(4) == pytest.approx(306, abs=1)


@pytest.mark.parametrize(
    ("remaining", "budget", "shares"),
    [
        ([], 16, []),
        ([100], 16, [16]),
        ([10], 16, [10]),
        ([100, 5, 100], 16, [11, 5, 0]),
        ([100, 3, 2], 16, [11, 3, 2]),
        ([100, 50, 60], 16, [8, 8, 0]),
        ([2, 50, 60], 16, [2, 14, 0]),
        ([100, 100], 1, [1, 0]),
        ([7, 7, 7], 100, [7, 7, 7]),
    ],
    ids=str,
)
def test_the_oldest_has_half_and_the_shortest_the_rest(remaining: list[int], budget: int, shares: list[int]) -> None:
    assert allot(remaining, budget) == shares


@settings(max_examples=200)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=8), st.integers(1, 512))
def test_shares_are_never_too_large_and_leave_nothing_unused(remaining: list[int], budget: int) -> None:
    shares = allot(remaining, budget)
    assert sum(shares) == min(budget, sum(remaining))
    assert all(0 <= share <= most for share, most in zip(shares, remaining, strict=True))
    assert shares[0] > 0
