"""One-shot batches when the model fails: the one at fault is told, the others never notice."""

import asyncio
import gc

import anyio
import pytest

from batching.batcher import Batcher
from batching.errors import EngineFailed, OutOfMemory
from batching.job import Job
from batching.limits import Limits
from batching.worker import Worker
from tests.batching.fakes import FakeModel, Poison, batcher_of, serving, submit
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio


async def outcomes(*calls: "asyncio.Task[int]") -> list[int | type[BaseException]]:
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else result for result in results]


async def test_a_poison_fails_alone_and_the_loop_goes_on() -> None:
    model = FakeModel(poison=[3])
    batcher = batcher_of(model)
    async with serving(batcher):
        calls = [submit(batcher, work) for work in range(8)]
        assert await outcomes(*calls) == [0, 2, 4, EngineFailed, 8, 10, 12, 14]
        assert model.batches == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]
        assert await batcher.submit(Job(9)) == 18


async def test_the_first_error_of_a_submission_ends_it_and_withdraws_the_rest() -> None:
    model = FakeModel(poison=[1])
    batcher = batcher_of(model, max_batch_size=2)
    jobs: list[Job[int, int]] = [Job(work) for work in range(6)]
    async with serving(batcher):
        with pytest.raises(EngineFailed):
            await batcher.submit_all(jobs)
        await settle()
        assert batcher.waiting == 0
    assert [job.cancel.cancelled for job in jobs[4:]] == [True, True]


async def test_of_several_errors_of_one_submission_none_is_left_unseen() -> None:
    batcher = batcher_of(FakeModel(poison=range(4)))
    async with serving(batcher):
        with pytest.raises(EngineFailed):
            await batcher.submit_all([Job(work) for work in range(4)])
        await batcher.submit(Job(9))  # the thread remembers its last call
        gc.collect()  # here asyncio would report a future whose error nobody has seen, and fail the test


async def test_an_error_returned_for_a_job_reaches_its_caller_as_it_is() -> None:
    undecodable = ValueError("undecodable")

    def model(works: object) -> list[int | Exception]:
        return [1, undecodable]

    batcher: Batcher[int, int] = Batcher("model", model, Limits(), worker=Worker("model"))
    async with serving(batcher):
        calls = [submit(batcher, 0), submit(batcher, 1)]
        assert await asyncio.gather(*calls, return_exceptions=True) == [1, undecodable]


async def test_an_engine_that_crashes_is_answered_for_and_tried_again() -> None:
    model = FakeModel(poison=range(100))
    batcher = batcher_of(model)
    async with serving(batcher):
        assert await outcomes(*(submit(batcher, work) for work in range(3))) == [EngineFailed] * 3
        model.poison = ()
        assert await outcomes(*(submit(batcher, work) for work in range(3))) == [0, 2, 4]


async def test_out_of_memory_is_answered_and_the_next_batches_are_smaller() -> None:
    model = FakeModel(capacity=30)
    batcher = batcher_of(model, max_batch_cost=80)
    async with serving(batcher):
        assert await batcher.submit_all([Job(10, cost=10) for _ in range(8)]) == [20] * 8
        assert [len(batch) for batch in model.batches] == [8, 4, 2, 2, 4, 2, 2]
        model.batches.clear()
        await batcher.submit_all([Job(10, cost=10) for _ in range(8)])
    assert [len(batch) for batch in model.batches] == [2, 2, 2, 2]  # 40 did not fit, so 20 is the limit now


async def test_the_limit_grows_back_after_the_cool_down() -> None:
    model = FakeModel(capacity=30)
    batcher = batcher_of(model, max_batch_cost=80)
    async with serving(batcher):
        await batcher.submit_all([Job(10, cost=10) for _ in range(8)])
        model.capacity = 1_000
        sizes = []
        for _ in range(8):
            model.batches.clear()
            await batcher.submit_all([Job(10, cost=10) for _ in range(8)])
            sizes.append(max(len(batch) for batch in model.batches))
            await advance(60.0)
    assert sizes == [2, 3, 4, 5, 6, 7, 8, 8]


async def test_a_job_that_does_not_fit_alone_is_told_so_and_the_others_are_answered() -> None:
    model = FakeModel(capacity=10)
    batcher = batcher_of(model)
    async with serving(batcher):
        calls = [submit(batcher, work) for work in (1, 2, 99, 4)]
        assert await outcomes(*calls) == [2, 4, OutOfMemory, 8]


async def test_what_counts_as_out_of_memory_is_the_devices_own_word() -> None:
    released: list[None] = []
    batcher: Batcher[int, int] = Batcher(
        "model",
        FakeModel(poison=[1]),
        Limits(),
        worker=Worker("model"),
        is_out_of_memory=lambda error: isinstance(error, Poison),
        release_memory=lambda: released.append(None),
    )
    async with serving(batcher):
        with pytest.raises(OutOfMemory):
            await batcher.submit(Job(1))
    assert released == [None]


async def test_jobs_arrive_and_leave_while_a_failing_batch_is_split() -> None:
    model = FakeModel(held=True, poison=[2])
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        calls = [submit(batcher, work) for work in (1, 2, 3, 4)]
        await model.busy_with(1, 2, 3, 4)
        model.latch.let_through()
        await model.busy_with(1, 2)
        left = calls.pop(0)
        left.cancel()
        calls.append(submit(batcher, 5))
        await settle()
        model.latch.open()
        with anyio.fail_after(5.0):
            assert await outcomes(*calls) == [EngineFailed, 6, 8, 10]
    assert left.cancelled()
