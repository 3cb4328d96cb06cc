"""What all batch loops share, seen through one of one-shot batches: the bounded door, and the end."""

import asyncio

import anyio
import pytest

from batching.batcher import Batcher
from batching.errors import DeadlineExceeded, QueueFull, ShuttingDown
from batching.job import Caller, Job
from batching.limits import Limits
from batching.worker import Worker
from tests.batching.fakes import FakeModel, batcher_of, serving, submit
from tests.clock import advance, settle, until

pytestmark = pytest.mark.anyio


# Bounds


async def test_the_queue_refuses_one_job_too_many_in_no_time() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_queue_size=3)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        calls += [submit(batcher, work) for work in (1, 2, 3)]
        await settle()
        with pytest.raises(QueueFull, match="3 requests") as refusal:
            batcher.submit(Job(4)).send(None)  # raises before it waits for anything
        assert refusal.value.limit == 3
        with pytest.raises(QueueFull):
            batcher.check_room()
        model.latch.open()
        assert await asyncio.gather(*calls) == [0, 2, 4, 6]
        batcher.check_room()


async def test_the_queue_refuses_more_cost_than_may_wait() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_queue_cost=100)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0, cost=1_000)]
        await model.busy_with(0)
        calls.append(submit(batcher, 1, cost=60))
        await settle()
        batcher.check_room(1, 40)
        with pytest.raises(QueueFull, match="100 units of work"):
            batcher.submit(Job(2, cost=41)).send(None)
        model.latch.open()
        await asyncio.gather(*calls)


async def test_a_refusal_says_when_to_come_back() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_queue_size=1)
    async with serving(batcher, model.latch):
        first = submit(batcher, 0, cost=100)
        await model.busy_with(0)
        await advance(5.0)
        model.latch.let_through()
        await first
        running = submit(batcher, 1)
        await model.busy_with(1)
        waiting = submit(batcher, 2, cost=300)
        await settle()
        with pytest.raises(QueueFull) as refusal:
            batcher.check_room()
        assert refusal.value.retry_after == 15.0  # 300 at 100 in 5 s
        model.latch.open()
        await asyncio.gather(running, waiting)


async def test_jobs_are_admitted_together_or_not_at_all() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_queue_size=3)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        calls.append(submit(batcher, 1))
        await settle()
        with pytest.raises(QueueFull):
            await batcher.submit_all([Job(2), Job(3), Job(4)])
        assert batcher.waiting == 1
        model.latch.open()
        await asyncio.gather(*calls)
    assert model.batches == [[0], [1]]


async def test_a_place_is_held_while_a_job_is_prepared() -> None:
    batcher = batcher_of(FakeModel(), max_queue_size=2)
    with batcher.place(Caller()):
        batcher.check_room()
        with batcher.place(Caller()):
            with pytest.raises(QueueFull):
                batcher.check_room()
        batcher.check_room()
    batcher.check_room(2)


async def test_a_preparation_that_outlasts_the_deadline_is_cut_and_its_place_given_back() -> None:
    batcher = batcher_of(FakeModel(), max_queue_size=1)
    caller = Caller(deadline=anyio.current_time() + 5)

    async def prepare() -> None:
        with batcher.place(caller):
            await anyio.sleep_forever()

    preparing = asyncio.create_task(prepare())
    await settle()
    await advance(5)
    with pytest.raises(DeadlineExceeded):
        await preparing
    batcher.check_room()


# The end


async def test_draining_refuses_new_work_and_finishes_what_was_admitted() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=1)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, 0)]
        await model.busy_with(0)
        calls.append(submit(batcher, 1))
        await settle()
        drained = asyncio.create_task(batcher.drain())
        await settle()
        with pytest.raises(ShuttingDown, match="test-model is shutting down"):
            await batcher.submit(Job(2))
        with pytest.raises(ShuttingDown):
            batcher.check_room()
        model.latch.let_through()
        await model.busy_with(1)
        assert not drained.done()
        model.latch.open()
        await drained
        assert await asyncio.gather(*calls) == [0, 2]


async def test_draining_an_idle_batcher_returns_at_once() -> None:
    batcher = batcher_of(FakeModel())
    async with serving(batcher):
        await batcher.drain()


async def test_draining_ends_when_all_who_waited_have_left() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    call = submit(batcher, 0)
    await settle()
    drained = asyncio.create_task(batcher.drain())
    await settle()
    call.cancel()
    await drained


async def test_draining_ends_when_all_who_waited_have_expired() -> None:
    batcher = batcher_of(FakeModel())
    async with serving(batcher):
        await settle()
        late = submit(batcher, 0, Caller(deadline=anyio.current_time()))
        drained = asyncio.create_task(batcher.drain())
        await settle()
        assert drained.done()
        with pytest.raises(DeadlineExceeded):
            late.result()


async def test_draining_does_not_wait_for_work_that_nobody_wants_any_more() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        unwanted = submit(batcher, 1)
        await model.busy_with(1)
        unwanted.cancel()
        await settle()
        await batcher.drain()


async def test_draining_ends_when_the_loop_is_stopped() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        call = submit(batcher, 0)
        await model.busy_with(0)
        drained = asyncio.create_task(batcher.drain())
        await settle()
    await settle()
    assert drained.done()
    assert isinstance(call.exception(), ShuttingDown)


async def test_when_the_loop_is_stopped_everyone_is_told_and_nobody_waits() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=1)
    jobs: list[Job[int, int]] = [Job(0), Job(1), Job(2)]
    async with serving(batcher, model.latch):
        calls = [asyncio.create_task(batcher.submit(job)) for job in jobs]
        await model.busy_with(0)
    assert all(isinstance(error, ShuttingDown) for error in await asyncio.gather(*calls, return_exceptions=True))
    assert all(job.cancel.cancelled for job in jobs)
    assert (batcher.running, batcher.waiting) == (0, 0)
    await batcher.drain()


async def test_whoever_comes_after_the_loop_has_stopped_is_turned_away() -> None:
    batcher = batcher_of(FakeModel())
    async with serving(batcher):
        await settle()
    with pytest.raises(ShuttingDown):
        batcher.submit(Job(1)).send(None)


async def test_a_loop_that_ends_by_a_fault_of_its_own_leaves_nobody_waiting() -> None:
    def faulty(error: BaseException) -> bool:
        raise ZeroDivisionError

    batcher: Batcher[int, int] = Batcher(
        "model", FakeModel(poison=[1]), Limits(), worker=Worker("model"), is_out_of_memory=faulty
    )
    call = submit(batcher, 1)
    with pytest.raises(ZeroDivisionError):
        await batcher.run()
    await until(call.done)
    assert isinstance(call.exception(), ShuttingDown)
