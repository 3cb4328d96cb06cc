"""What is sent again, when, and that it never becomes much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.retry import FIRST_DELAY, MAX_RETRY_AFTER, RetryBudget, delay_before, is_repeatable, retry_after

NOW = 1_750_000_000.0  # Sun, 15 Jun 2025 15:06:40 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("0", 0.0),
        ("1000000000", 1e9),
        ("Sun, 15 Jun 2025 15:06:50 GMT", 10.0),
        ("Sun, 15 Jun 2025 15:06:30 GMT", None),
        ("Sun, 15 Jun 99999 15:06:30 GMT", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("9" * 400, None),
        ("soon", None),
        ("", None),
    ],
)
def test_what_a_server_asks_to_be_waited_for(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_breaks_anything(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0


def test_the_wait_is_what_is_asked_up_to_a_bound_and_spread_by_chance() -> None:
    assert delay_before(2, None, 0.0) == 0
    assert delay_before(2, None, 1.0) == FIRST_DELAY
    assert delay_before(3, None, 0.5) == FIRST_DELAY
    assert delay_before(2, MAX_RETRY_AFTER, 0.0) == MAX_RETRY_AFTER
    assert delay_before(2, MAX_RETRY_AFTER + 0.1, 0.0) is None
    assert delay_before(2, 1e9, 0.5) is None


@pytest.mark.parametrize(
    ("method", "path", "repeatable"),
    [
        ("GET", "/v1/files/x", True),
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/chat/completions?api-version=1", True),
        ("POST", "/rerank", True),
        ("POST", "/v2/rerank", True),
        ("POST", "/v1/audio/speech", True),
        ("POST", "/v1/files", False),
        ("POST", "/v1/batches", False),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/chat/completions/x", False),
        ("DELETE", "/v1/files/x", False),
    ],
)
def test_only_what_changes_nothing_is_sent_twice(method: str, path: str, repeatable: bool) -> None:
    assert is_repeatable(method, path) is repeatable


def test_the_first_request_may_be_sent_again_and_then_one_in_ten() -> None:
    budget = RetryBudget()
    assert budget.spend()
    assert budget.empty
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


@given(st.lists(st.booleans(), max_size=500))
def test_retries_never_add_more_than_a_tenth_to_the_requests(wanted: list[bool]) -> None:
    budget, retries = RetryBudget(), 0
    for count, wants in enumerate(wanted, 1):
        budget.earn()
        retries += wants and budget.spend()
        assert retries <= count / 10 + 1
