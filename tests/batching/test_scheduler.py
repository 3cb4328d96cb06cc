"""Who runs next, decided with numbers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.errors import QueueFull
from batching.job import Caller, Job, Priority
from batching.limits import Limits
from batching.scheduler import Batch, Scheduler
from tests.batching.fakes import thorough

Named = Job[str, None]


def job(
    name: str,
    cost: int = 1,
    *,
    priority: Priority = Priority.INTERACTIVE,
    deadline: float | None = None,
    arrived: float = 0.0,
) -> Named:
    job: Named = Job(name, Caller(priority=priority, deadline=deadline), cost)
    job.timing.arrived = arrived
    return job


def scheduler_with(*jobs: Named, **limits: Any) -> Scheduler[Named]:
    scheduler: Scheduler[Named] = Scheduler(Limits(**limits))
    scheduler.add(jobs)
    return scheduler


def take(
    scheduler: Scheduler[Named], *, now: float = 0.0, max_size: int = 100, max_cost: int = 100, alone: bool = True
) -> Batch[Named]:
    return scheduler.next_batch(now, max_size=max_size, max_cost=max_cost, alone=alone)


def names(jobs: list[Named]) -> str:
    return " ".join(job.work for job in jobs)


# The bounds


def test_as_many_jobs_wait_as_the_limit_says_and_one_more_is_refused() -> None:
    scheduler = scheduler_with(job("a"), job("b"), max_queue_size=2)
    with pytest.raises(QueueFull, match=r"the queue is full \(2 requests\)"):
        scheduler.add([job("c")])
    assert len(scheduler) == 2


def test_as_much_cost_waits_as_the_limit_says_and_one_more_is_refused() -> None:
    scheduler = scheduler_with(job("a", 60), job("b", 40), max_queue_cost=100)
    with pytest.raises(QueueFull, match=r"the queue is full \(100 units of work\)"):
        scheduler.add([job("c", 1)])
    assert scheduler.waiting_cost == 100


def test_jobs_come_in_together_or_not_at_all() -> None:
    scheduler = scheduler_with(job("a"), max_queue_size=3)
    with pytest.raises(QueueFull):
        scheduler.add([job("b"), job("c"), job("d")])
    assert (len(scheduler), scheduler.waiting_cost) == (1, 1)


def test_an_empty_queue_takes_any_cost() -> None:
    scheduler = scheduler_with(job("huge", 1_000), max_queue_cost=100)
    assert scheduler.waiting_cost == 1_000


def test_an_empty_queue_takes_one_request_of_any_number_of_jobs() -> None:
    scheduler = scheduler_with(job("a"), job("b"), job("c"), max_queue_size=2)
    assert len(scheduler) == 3
    with pytest.raises(QueueFull):
        scheduler.add([job("d")])


def test_priorities_share_the_bounds() -> None:
    scheduler = scheduler_with(job("a"), job("b", priority=Priority.BACKGROUND), max_queue_size=2)
    with pytest.raises(QueueFull):
        scheduler.check_room()


def test_room_can_be_asked_for_without_coming_in() -> None:
    scheduler = scheduler_with(job("a", 60), max_queue_size=2, max_queue_cost=100)
    scheduler.check_room(1, 40)
    with pytest.raises(QueueFull):
        scheduler.check_room(1, 41)
    assert len(scheduler) == 1


def test_what_leaves_makes_room() -> None:
    scheduler = scheduler_with(job("a", 60), job("b", 40), max_queue_size=2, max_queue_cost=100)
    take(scheduler, max_size=1)
    scheduler.add([job("c", 60)])
    assert scheduler.waiting_cost == 100


# The order


def test_first_come_first_served() -> None:
    scheduler = scheduler_with(*map(job, "abc"))
    assert names(take(scheduler).jobs) == "a b c"


def test_interactive_jobs_run_before_background_jobs_that_came_earlier() -> None:
    scheduler = scheduler_with(job("a", priority=Priority.BACKGROUND), job("b"), job("c"))
    assert names(take(scheduler).jobs) == "b c a"


def test_preempted_jobs_return_to_the_head_in_their_order() -> None:
    first, second = job("a"), job("b")
    scheduler = scheduler_with(first, second, job("c"))
    assert names(take(scheduler, max_size=2).jobs) == "a b"
    scheduler.requeue([first, second])
    assert names(take(scheduler).jobs) == "a b c"


def test_preempted_jobs_return_to_the_head_of_their_own_priority() -> None:
    preempted = job("a", priority=Priority.BACKGROUND)
    scheduler = scheduler_with(preempted, job("b", priority=Priority.BACKGROUND))
    take(scheduler, max_size=1)
    scheduler.add([job("c")])
    scheduler.requeue([preempted])
    assert names(take(scheduler).jobs) == "c a b"


def test_preempted_jobs_return_though_the_queue_is_full() -> None:
    preempted = job("a")
    scheduler = scheduler_with(preempted, max_queue_size=1)
    take(scheduler)
    scheduler.add([job("b")])
    scheduler.requeue([preempted])
    assert (len(scheduler), scheduler.waiting_cost) == (2, 2)


def test_a_request_of_several_batches_takes_turns_with_those_who_come_meanwhile() -> None:
    scheduler = scheduler_with(*(job(f"big{i}", 50) for i in range(6)), max_batch_cost=100)
    assert names(take(scheduler).jobs) == "big0 big1"
    scheduler.add([job("late", 10)])
    assert [names(take(scheduler).jobs) for _ in range(3)] == ["late big2", "big3 big4", "big5"]


def test_requests_whose_jobs_come_one_after_the_other_take_turns_by_what_waits_of_each() -> None:
    scheduler = Scheduler[Named](Limits(max_batch_cost=120, max_turn_cost=30))
    for name in ("a", "b"):
        for i in range(4):
            one = job(f"{name}{i}", 30)
            one.ahead = 30 * i
            scheduler.add([one])
    assert names(take(scheduler, max_cost=60).jobs) == "a0 b0"
    scheduler.add([job("late", 10)])
    assert names(take(scheduler, max_cost=60).jobs) == "late a1"


def test_where_time_is_bounded_the_rest_of_a_large_request_does_not_fill_up_the_batch_of_who_goes_before_it() -> None:
    large, small = Caller(), Caller()
    scheduler = Scheduler[Named](Limits(max_batch_cost=256, max_batch_seconds=0.1))
    scheduler.add([Job(f"big{i}", large, 50) for i in range(5)])
    assert names(take(scheduler).jobs) == "big0 big1"
    scheduler.add([Job("late", small, 10), Job("its", small, 10)])
    assert [names(take(scheduler).jobs) for _ in range(3)] == ["late its", "big2 big3", "big4"]


def test_a_request_of_several_batches_is_not_put_off_for_ever() -> None:
    scheduler = scheduler_with(*(job(f"big{i}", 100) for i in range(3)), max_batch_cost=100)
    taken = []
    for i in range(6):
        scheduler.add([job(f"small{i}", 100)])
        taken.append(names(take(scheduler).jobs))
    assert taken == ["big0", "small0", "small1", "small2", "big1", "small3"]


def test_turns_of_one_priority_do_not_pass_with_the_work_of_another() -> None:
    background = [job(f"b{i}", 100, priority=Priority.BACKGROUND) for i in range(3)]
    scheduler = scheduler_with(*background, *map(job, "ab"), max_batch_cost=1)
    assert names(take(scheduler).jobs) == "a b"
    scheduler.add([job("late", 100, priority=Priority.BACKGROUND)])
    assert [names(take(scheduler).jobs) for _ in range(4)] == ["b0", "late", "b1", "b2"]


def test_a_preempted_job_returns_before_every_turn() -> None:
    jobs = [job(f"big{i}", 100) for i in range(3)]
    scheduler = scheduler_with(*jobs, max_batch_cost=100)
    take(scheduler), take(scheduler)
    scheduler.requeue(jobs[:2])
    assert [names(take(scheduler).jobs) for _ in range(3)] == ["big0", "big1", "big2"]
    assert scheduler.waiting_cost == 0


def test_a_job_of_a_later_turn_can_be_withdrawn() -> None:
    jobs = [job(f"big{i}", 100) for i in range(3)]
    scheduler = scheduler_with(*jobs, max_batch_cost=100)
    assert scheduler.abort(jobs[2]) and not scheduler.abort(jobs[2])
    assert (len(scheduler), scheduler.waiting_cost) == (2, 200)


# The batch


def test_a_batch_is_bounded_by_size() -> None:
    scheduler = scheduler_with(*map(job, "abc"))
    assert names(take(scheduler, max_size=2).jobs) == "a b"
    assert names(take(scheduler, max_size=2).jobs) == "c"


def test_a_batch_is_bounded_by_cost() -> None:
    scheduler = scheduler_with(job("a", 40), job("b", 60), job("c", 1))
    assert names(take(scheduler, max_cost=100).jobs) == "a b"


def test_a_small_job_does_not_overtake_one_that_does_not_fit() -> None:
    scheduler = scheduler_with(job("a", 40), job("b", 61), job("c", 1))
    assert names(take(scheduler, max_cost=100).jobs) == "a"
    assert names(take(scheduler, max_cost=100).jobs) == "b c"


def test_a_job_above_the_budget_runs_by_itself() -> None:
    scheduler = scheduler_with(job("huge", 101), job("b", 1))
    assert names(take(scheduler, max_cost=100).jobs) == "huge"
    assert names(take(scheduler, max_cost=100).jobs) == "b"


def test_a_job_above_the_budget_waits_while_others_run() -> None:
    scheduler = scheduler_with(job("huge", 101), job("b", 1))
    assert take(scheduler, max_cost=100, alone=False).jobs == []
    assert len(scheduler) == 2


@pytest.mark.parametrize("room", [0, -5])
def test_nobody_joins_when_those_who_run_have_used_the_budget_up(room: int) -> None:
    assert take(scheduler_with(job("a")), max_cost=room, alone=False).jobs == []


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert take(scheduler_with()) == ([], [])


# Deadlines


def test_a_job_past_its_deadline_never_runs() -> None:
    scheduler = scheduler_with(job("late", deadline=5.0), job("b"), job("later", deadline=6.0))
    batch = take(scheduler, now=6.0)
    assert (names(batch.jobs), names(batch.expired)) == ("b", "late later")
    assert (len(scheduler), scheduler.waiting_cost) == (0, 0)


def test_expired_jobs_are_cleared_away_though_the_batch_is_full() -> None:
    scheduler = scheduler_with(job("late", deadline=5.0), job("b"))
    batch = take(scheduler, now=5.0, max_size=0)
    assert (names(batch.jobs), names(batch.expired)) == ("", "late")


def test_an_expired_job_takes_nothing_from_the_budget() -> None:
    scheduler = scheduler_with(job("late", 90, deadline=5.0), job("b", 90))
    assert names(take(scheduler, now=5.0, max_cost=100).jobs) == "b"


# When to start


def due_in(scheduler: Scheduler[Named], now: float, max_size: int = 4, max_cost: int = 100) -> float | None:
    return scheduler.due_in(now, max_size=max_size, max_cost=max_cost)


def test_without_jobs_nothing_is_ever_due() -> None:
    assert due_in(scheduler_with(max_wait=1.0), now=0.0) is None


def test_a_lone_job_is_due_at_once_when_nothing_is_to_be_waited_for() -> None:
    assert due_in(scheduler_with(job("a", arrived=7.0)), now=7.0) == 0.0


def test_the_first_arrival_starts_the_clock() -> None:
    scheduler = scheduler_with(job("a", arrived=7.0), job("b", arrived=7.5), max_wait=1.0)
    assert [due_in(scheduler, now) for now in (7.5, 7.75, 8.0, 9.0)] == [0.5, 0.25, 0.0, 0.0]


def test_the_first_arrival_counts_whatever_its_priority() -> None:
    background = job("a", arrived=7.0, priority=Priority.BACKGROUND)
    assert due_in(scheduler_with(background, job("b", arrived=7.5), max_wait=1.0), now=7.75) == 0.25


def test_a_full_batch_is_due_at_once() -> None:
    scheduler = scheduler_with(*map(job, "abcd"), max_wait=1.0)
    assert due_in(scheduler, now=0.0, max_size=5) == 1.0
    assert due_in(scheduler, now=0.0, max_size=4) == 0.0


def test_a_costly_batch_is_due_at_once() -> None:
    scheduler = scheduler_with(job("a", 60), job("b", 40), max_wait=1.0)
    assert due_in(scheduler, now=0.0, max_cost=101) == 1.0
    assert due_in(scheduler, now=0.0, max_cost=100) == 0.0


# Withdrawing


def test_a_withdrawn_job_never_runs() -> None:
    withdrawn = job("b", 5)
    scheduler = scheduler_with(job("a"), withdrawn, job("c"))
    assert scheduler.abort(withdrawn)
    assert scheduler.waiting_cost == 2
    assert names(take(scheduler).jobs) == "a c"


def test_a_job_that_does_not_wait_cannot_be_withdrawn() -> None:
    running = job("a")
    scheduler = scheduler_with(running)
    take(scheduler)
    assert not scheduler.abort(running)
    assert not scheduler.abort(job("never added"))


def test_clearing_withdraws_everyone() -> None:
    scheduler = scheduler_with(job("a", priority=Priority.BACKGROUND), job("b"))
    assert names(scheduler.clear()) == "b a"
    assert (len(scheduler), scheduler.waiting_cost) == (0, 0)


jobs = st.builds(
    job,
    st.just("job"),
    st.integers(0, 50),
    priority=st.sampled_from(Priority),
    deadline=st.none() | st.integers(0, 10),
)


@thorough
@given(st.lists(jobs, max_size=30), st.integers(1, 8), st.integers(1, 60))
def test_every_job_comes_out_exactly_once_in_batches_within_bounds(
    jobs: list[Named], max_size: int, max_cost: int
) -> None:
    scheduler = scheduler_with(*jobs)
    out: list[Named] = []
    while len(scheduler):
        batch = take(scheduler, now=5.0, max_size=max_size, max_cost=max_cost)
        assert 0 < len(batch.jobs) + len(batch.expired)
        assert len(batch.jobs) <= max_size
        assert len(batch.jobs) == 1 or sum(job.cost for job in batch.jobs) <= max_cost
        assert all(job.is_due(5.0) for job in batch.expired)
        assert not any(job.is_due(5.0) for job in batch.jobs)
        out += batch.jobs + batch.expired
    assert len(out) == len(set(out)) == len(jobs)
    assert scheduler.waiting_cost == 0
