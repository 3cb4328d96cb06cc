"""When to come back, told with numbers."""

import pytest

from batching.pace import Pace


def test_before_anything_has_finished_the_shortest_wait_is_told() -> None:
    assert Pace().seconds_for(1_000_000) == 1.0


def test_the_wait_is_the_cost_over_the_pace() -> None:
    pace = Pace()
    pace.record(100, 2.0)
    assert pace.seconds_for(500) == 10.0


def test_a_new_batch_moves_the_pace_by_a_fifth_of_the_difference() -> None:
    pace = Pace()
    pace.record(100, 1.0)
    pace.record(200, 1.0)
    assert pace.seconds_for(1200) == pytest.approx(1200 / 120)


@pytest.mark.parametrize(("cost", "seconds"), [(10, 1.0), (100, 1.0), (6_000, 60.0), (1_000_000, 60.0)])
def test_the_wait_told_is_between_one_second_and_sixty(cost: int, seconds: float) -> None:
    pace = Pace()
    pace.record(100, 1.0)
    assert pace.seconds_for(cost) == seconds


def test_what_is_done_in_a_time_is_known_after_the_first_batch() -> None:
    pace = Pace()
    assert pace.cost_in(0.5) == 0
    pace.record(100, 2.0)
    assert pace.cost_in(0.5) == 25


def test_a_batch_that_took_no_time_says_nothing_about_the_pace() -> None:
    pace = Pace()
    pace.record(100, 0.0)
    assert pace.seconds_for(1_000_000) == 1.0


def test_batches_without_cost_leave_the_shortest_wait() -> None:
    pace = Pace()
    pace.record(0, 1.0)
    assert pace.seconds_for(1_000_000) == 1.0
