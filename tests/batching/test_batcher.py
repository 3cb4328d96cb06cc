"""One-shot batches: who runs with whom, and what ends a wait."""

import asyncio
from unittest.mock import Mock

import anyio
import pytest

from batching.batcher import Batcher
from batching.context import current_requests
from batching.errors import DeadlineExceeded
from batching.job import Caller, Job, Priority
from batching.limits import Limits
from batching.scheduler import Scheduler
from batching.worker import Worker
from tests.batching.fakes import FakeModel, batcher_of, serving, submit
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio


# Gathering


async def test_a_lone_request_starts_at_once() -> None:
    model = FakeModel()
    batcher = batcher_of(model)
    job: Job[int, int] = Job(7)
    async with serving(batcher):
        await settle()
        assert await batcher.submit(job) == 14
    assert model.batches == [[7]]
    assert (job.timing.queue_time, job.timing.batch_size) == (0.0, 1)


async def test_what_arrives_while_a_batch_runs_forms_the_next_one() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=4)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        calls += [submit(batcher, work) for work in range(1, 7)]
        await settle()
        assert (batcher.running, batcher.waiting) == (1, 6)
        model.latch.open()
        assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_jobs_that_come_together_run_together() -> None:
    model = FakeModel()
    batcher = batcher_of(model)
    async with serving(batcher):
        assert await batcher.submit_all([Job(work) for work in range(5)]) == [0, 2, 4, 6, 8]
    assert model.batches == [[0, 1, 2, 3, 4]]


async def test_a_batch_costs_no_more_than_the_limit() -> None:
    model = FakeModel()
    batcher = batcher_of(model, max_batch_cost=100)
    async with serving(batcher):
        await batcher.submit_all([Job(1, cost=60), Job(2, cost=40), Job(3, cost=10), Job(4, cost=500), Job(5, cost=10)])
    assert model.batches == [[1, 2], [3], [4], [5]]


async def test_a_batch_is_as_large_as_the_pace_allows() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_cost=160, max_batch_seconds=1.0)
    async with serving(batcher, model.latch):
        all_done = asyncio.ensure_future(batcher.submit_all([Job(work, cost=10) for work in range(8)]))
        await model.busy_with(0)  # nothing is known yet: a sixteenth
        await advance(0.25)  # 40 a second
        model.latch.open()
        assert await all_done == [0, 2, 4, 6, 8, 10, 12, 14]
    assert model.batches[:2] == [[0], [1, 2, 3, 4]]


async def test_whoever_comes_meanwhile_waits_for_a_turn_of_a_large_request_and_not_for_all() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_cost=160, max_batch_seconds=0.01)
    async with serving(batcher, model.latch):
        large = asyncio.ensure_future(batcher.submit_all([Job(work, cost=10) for work in range(5)]))
        await model.busy_with(0)
        lone = submit(batcher, 9)
        await settle()
        await advance(1.0)
        model.latch.open()
        await asyncio.gather(large, lone)
    assert model.batches == [[0], [9], [1], [2], [3], [4]]


async def test_interactive_jobs_run_first() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=1)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        calls += [submit(batcher, 1, Caller(priority=Priority.BACKGROUND)), submit(batcher, 2)]
        await settle()
        model.latch.open()
        await asyncio.gather(*calls)
    assert model.batches == [[0], [2], [1]]


async def test_a_batch_waits_for_company_but_not_beyond_max_wait() -> None:
    model = FakeModel()
    batcher = batcher_of(model, max_wait=2.0)
    async with serving(batcher):
        first = submit(batcher, 1)
        await settle()
        await advance(1.5)
        second = submit(batcher, 2)
        await settle()
        await advance(0.25)
        assert model.batches == []
        await advance(0.25)
        assert (await first, await second) == (2, 4)
    assert model.batches == [[1, 2]]


async def test_a_full_batch_waits_for_nobody() -> None:
    model = FakeModel()
    batcher = batcher_of(model, max_wait=2.0, max_batch_size=3)
    async with serving(batcher):
        assert await batcher.submit_all([Job(1), Job(2), Job(3)]) == [2, 4, 6]


async def test_an_empty_submission_is_answered_without_the_model() -> None:
    model = FakeModel()
    assert await batcher_of(model).submit_all([]) == []
    assert model.batches == []


async def test_jobs_may_be_submitted_before_the_loop_starts() -> None:
    batcher = batcher_of(FakeModel())
    call = submit(batcher, 1)
    await settle()
    async with serving(batcher):
        assert await call == 2


async def test_a_batcher_may_be_made_in_the_worker_thread() -> None:
    worker = Worker("model")

    def load() -> Batcher[int, int]:
        return Batcher("model", FakeModel(), Limits(), worker=worker)

    batcher = await worker.run(load)
    async with serving(batcher):
        assert await batcher.submit(Job(1)) == 2


async def test_a_job_knows_when_it_waited_and_when_it_ran() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    jobs: list[Job[int, int]] = [Job(0), Job(1), Job(2)]
    start = anyio.current_time()
    async with serving(batcher, model.latch):
        calls = [asyncio.create_task(batcher.submit(jobs[0]))]
        await model.busy_with(0)
        calls += [asyncio.create_task(batcher.submit(job)) for job in jobs[1:]]
        await settle()
        await advance(3.0)
        model.latch.let_through()
        await model.busy_with(1, 2)
        await advance(2.0)
        model.latch.open()
        await asyncio.gather(*calls)
    timing = jobs[2].timing
    assert (timing.arrived, timing.started, timing.ended) == (start, start + 3.0, start + 5.0)
    assert (timing.queue_time, timing.batch_size) == (3.0, 2)


async def test_the_model_knows_which_requests_it_works_for() -> None:
    seen: list[tuple[str, ...]] = []

    def model(works: object) -> list[int]:
        seen.append(current_requests.get())
        return [0, 0]

    batcher: Batcher[int, int] = Batcher("model", model, Limits(), worker=Worker("model"))
    async with serving(batcher):
        await batcher.submit_all([Job(1, Caller("req-1")), Job(2, Caller("req-2"))])
    assert seen == [("req-1", "req-2")]


async def test_an_idle_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Mock(side_effect=Scheduler.due_in)
    monkeypatch.setattr(Scheduler, "due_in", lambda *args, **kwargs: looks(*args, **kwargs))
    batcher = batcher_of(FakeModel())
    async with serving(batcher):
        await batcher.submit(Job(1))
        await settle()
        looks.reset_mock()
        await advance(3600.0)
        looks.assert_not_called()


# Deadlines


async def test_a_job_whose_deadline_passes_in_the_queue_never_runs() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    deadline = anyio.current_time() + 5.0
    async with serving(batcher, model.latch):
        running = submit(batcher, 0)
        await model.busy_with(0)
        late = submit(batcher, 1, Caller(deadline=deadline))
        await advance(4.9)
        assert not late.done()
        await advance(0.1)
        with pytest.raises(DeadlineExceeded):
            late.result()
        assert batcher.waiting == 0
        model.latch.open()
        assert await running == 0
    assert model.batches == [[0]]


async def test_a_job_whose_deadline_passes_while_it_runs_is_answered_at_once_and_marked() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    job: Job[int, int] = Job(1, Caller(deadline=anyio.current_time() + 5.0))
    async with serving(batcher, model.latch):
        late = asyncio.create_task(batcher.submit(job))
        neighbour = submit(batcher, 2)
        await model.busy_with(1, 2)
        assert not job.cancel.cancelled
        await advance(5.0)
        with pytest.raises(DeadlineExceeded):
            late.result()
        assert job.cancel.cancelled
        model.latch.open()
        assert await neighbour == 4
        assert await batcher.submit(Job(3)) == 6


async def test_a_job_that_comes_too_late_already_never_runs() -> None:
    model = FakeModel()
    batcher = batcher_of(model)
    async with serving(batcher):
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(Job(1, Caller(deadline=anyio.current_time())))
        await settle()
    assert model.batches == []


async def test_the_earliest_deadline_holds_for_jobs_submitted_together() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    now = anyio.current_time()
    jobs: list[Job[int, int]] = [Job(1, Caller(deadline=now + 9.0)), Job(2, Caller(deadline=now + 5.0)), Job(3)]
    async with serving(batcher, model.latch):
        call = asyncio.create_task(batcher.submit_all(jobs))
        await model.busy_with(1, 2, 3)
        await advance(5.0)
        with pytest.raises(DeadlineExceeded):
            call.result()
        assert all(job.cancel.cancelled for job in jobs)


# Clients that leave


async def test_a_job_cancelled_in_the_queue_is_never_in_a_batch() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        left, stays = submit(batcher, 1), submit(batcher, 2)
        await settle()
        left.cancel()
        await settle()
        assert batcher.waiting == 1
        model.latch.open()
        assert await asyncio.gather(*calls, stays) == [0, 4]
    assert left.cancelled()
    assert model.batches == [[0], [2]]


async def test_a_job_cancelled_while_it_runs_is_marked_and_the_next_batch_runs() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    job: Job[int, int] = Job(0)
    async with serving(batcher, model.latch):
        left = asyncio.create_task(batcher.submit(job))
        await model.busy_with(0)
        following = submit(batcher, 1)
        left.cancel()
        await settle()
        assert left.cancelled()
        assert job.cancel.cancelled
        assert (batcher.running, batcher.waiting) == (1, 1)  # a thread cannot be stopped
        model.latch.open()
        assert await following == 2
    assert model.batches == [[0], [1]]


async def test_leaving_a_scope_withdraws_all_jobs_submitted_in_it() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=2)
    jobs: list[Job[int, int]] = [Job(work) for work in range(4)]
    async with serving(batcher, model.latch):
        with anyio.move_on_after(5.0):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batcher.submit_all, jobs)
                await model.busy_with(0, 1)
                tasks.start_soon(advance, 5.0)
        assert [job.cancel.cancelled for job in jobs] == [True] * 4
        assert (batcher.running, batcher.waiting) == (2, 0)
        model.latch.open()
        assert await batcher.submit(Job(4)) == 8
    assert model.batches == [[0, 1], [4]]


async def test_an_answered_job_is_not_marked() -> None:
    job: Job[int, int] = Job(1)
    batcher = batcher_of(FakeModel())
    async with serving(batcher):
        await batcher.submit(job)
    assert not job.cancel.cancelled
