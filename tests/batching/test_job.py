"""Jobs, their deadlines and their marks."""

import pytest

from batching.job import Caller, CancelToken, Job, Timing


@pytest.mark.parametrize(("now", "due"), [(9.99, False), (10.0, True), (10.01, True)])
def test_a_job_is_due_from_its_deadline_on(now: float, due: bool) -> None:
    assert Job("work", Caller(deadline=10.0)).is_due(now) is due


def test_a_job_without_a_deadline_is_never_due() -> None:
    assert not Job("work").is_due(float("inf"))


def test_a_mark_stays_set() -> None:
    token = CancelToken()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled


def test_jobs_are_told_apart_though_they_ask_for_the_same() -> None:
    assert len({Job("work"), Job("work")}) == 2


def test_queue_time_is_from_arrival_to_start() -> None:
    assert Timing(arrived=10.0, started=10.5).queue_time == 0.5


def test_queue_time_of_a_job_that_never_started_is_zero() -> None:
    assert Timing(arrived=10.0).queue_time == 0.0
