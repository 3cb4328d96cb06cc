"""When a process that died is started again."""

import pytest

from batching.restarts import Restarts


def test_the_pause_doubles_with_each_crash_up_to_the_longest() -> None:
    restarts = Restarts(most=100)
    assert [restarts.crashed(30.0 * n) for n in range(9)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])


def test_a_quiet_minute_makes_the_next_crash_the_first_again() -> None:
    restarts = Restarts()
    assert [restarts.crashed(now) for now in (0.0, 1.0, 61.5, 62.0)] == pytest.approx([0.1, 0.2, 0.1, 0.2])


def test_five_crashes_within_a_minute_are_the_end() -> None:
    restarts = Restarts()
    assert [restarts.crashed(now) for now in (0.0, 15.0, 30.0, 45.0, 60.0)][3:] == [pytest.approx(0.8), None]


def test_four_crashes_a_minute_go_on_for_ever() -> None:
    restarts = Restarts()
    assert None not in [restarts.crashed(15.1 * n) for n in range(100)]


def test_an_answer_between_two_crashes_makes_the_later_one_the_first() -> None:
    restarts = Restarts(most=2)
    for _ in range(10):
        assert restarts.crashed(1.0) == pytest.approx(0.1)
        restarts.answered()
    assert restarts.crashed(1.0) == pytest.approx(0.1)
    assert restarts.crashed(1.0) is None


def test_starts_that_fail_slowly_are_the_end_too() -> None:
    """A large model takes longer to load than five times within a minute."""
    restarts = Restarts()
    assert restarts.crashed(0.0) is not None
    assert [restarts.failed_to_start(30.0 * n) is None for n in range(1, 6)] == [False] * 4 + [True]


def test_a_start_that_succeeds_forgets_those_that_failed() -> None:
    restarts = Restarts()
    for n in range(100):
        assert restarts.failed_to_start(30.0 * n) is not None
        if n % 4 == 3:
            restarts.started()
