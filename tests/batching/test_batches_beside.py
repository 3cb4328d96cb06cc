"""Several batches at once: which of them has the machine to itself."""

import asyncio
from collections.abc import Sequence

import pytest

from batching.batcher import Batcher
from batching.errors import EngineFailed, ShuttingDown
from batching.job import Caller, Job
from batching.limits import Limits
from batching.worker import Worker
from tests.batching.fakes import FakeModel, Latch, SteppedWorker, serving, submit
from tests.clock import advance, settle, until

pytestmark = pytest.mark.anyio


class Machine:
    """A model and the batches it ran, by whether they had it to themselves. latch: where all of them wait."""

    def __init__(self, workers: int = 2, **limits: int) -> None:
        self.alone, self.beside = FakeModel(poison=[13]), FakeModel(poison=[13])
        self.latch = self.alone.latch = self.beside.latch = Latch(closed=True)
        lanes = [Worker(f"model {number}") for number in range(workers)]
        self.batcher: Batcher[int, int] = Batcher(
            "model", self.alone, Limits(**limits), worker=lanes[0], beside=lanes[1:], run_beside=self.beside
        )

    async def has_begun(self, batches: int) -> None:
        await until(lambda: self.latch.arrived == batches)

    @property
    def batches(self) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        """Those alone, and in any order those beside others."""
        return self.alone.batches, sorted(self.beside.batches)


async def test_what_one_batch_takes_has_the_machine_to_itself() -> None:
    machine = Machine()
    async with serving(machine.batcher, machine.latch):
        calls = [submit(machine.batcher, 1)]
        await machine.has_begun(1)
        calls += [submit(machine.batcher, 2), submit(machine.batcher, 3)]
        await settle()
        assert (machine.batcher.running, machine.batcher.waiting) == (1, 2)
        machine.latch.open()
        assert await asyncio.gather(*calls) == [2, 4, 6]
    assert machine.batches == ([[1], [2, 3]], [])


async def test_what_is_more_than_a_batch_runs_in_several_at_once() -> None:
    machine = Machine(max_batch_size=2)
    async with serving(machine.batcher, machine.latch):
        all_done = asyncio.ensure_future(machine.batcher.submit_all([Job(work) for work in range(5)]))
        await machine.has_begun(2)
        await settle()
        assert (machine.batcher.running, machine.batcher.waiting) == (4, 1)
        machine.latch.open()
        assert await all_done == [0, 2, 4, 6, 8]
    assert machine.batches == ([], [[0, 1], [2, 3], [4]])


async def test_there_are_as_many_batches_at_once_as_workers() -> None:
    machine = Machine(workers=3, max_batch_size=1)
    async with serving(machine.batcher, machine.latch):
        all_done = asyncio.ensure_future(machine.batcher.submit_all([Job(work) for work in range(5)]))
        await machine.has_begun(3)
        await settle()
        assert (machine.batcher.running, machine.batcher.waiting) == (3, 2)
        machine.latch.open()
        assert await all_done == [0, 2, 4, 6, 8]


async def test_batches_at_once_share_what_may_run_together_at_any_pace() -> None:
    machine, caller = Machine(max_batch_cost=640, max_batch_seconds=1), Caller()
    async with serving(machine.batcher, machine.latch):
        all_done = asyncio.ensure_future(machine.batcher.submit_all([Job(work, caller, cost=5) for work in range(5)]))
        await machine.has_begun(2)
        machine.latch.open()
        await all_done
    assert machine.batches[1][:2] == [[0, 1], [2, 3]]  # of a thirty-second, half each


async def test_while_small_requests_keep_coming_beside_a_large_one_they_have_a_lane_of_their_own() -> None:
    alone, beside, caller = FakeModel(), FakeModel(), Caller()
    first, second = SteppedWorker(), SteppedWorker()
    limits = Limits(max_batch_size=1, max_batch_cost=256, max_batch_seconds=1)
    batcher = Batcher("model", alone, limits, worker=first, beside=[second], run_beside=beside)
    async with serving(batcher):
        large = asyncio.ensure_future(batcher.submit_all([Job(work, caller) for work in range(6)]))
        await settle()
        small = submit(batcher, 100)
        first.let_through()  # 0
        second.let_through()  # 1
        await settle()
        first.let_through()
        await small
        assert (batcher.running, batcher.waiting) == (1, 3)
        second.let_through()  # 2
        await settle()
        assert (batcher.running, batcher.waiting) == (1, 2)  # 3, on all cores
        small = submit(batcher, 200)
        await settle()
        assert (batcher.running, batcher.waiting) == (2, 2)
        await advance(10.0)
        first.open()
        second.open()
        await asyncio.gather(large, small)
    assert alone.batches == [[3]]
    assert beside.batches[:4] == [[0], [1], [100], [2]]


async def test_one_batch_at_once_is_always_alone() -> None:
    machine = Machine(workers=1, max_batch_size=1)
    machine.latch.open()
    async with serving(machine.batcher):
        assert await machine.batcher.submit_all([Job(1), Job(2)]) == [2, 4]
    assert machine.batches == ([[1], [2]], [])


async def test_a_failing_batch_leaves_the_one_beside_it_alone() -> None:
    machine = Machine(max_batch_size=1)
    async with serving(machine.batcher, machine.latch):
        calls = [submit(machine.batcher, work) for work in (13, 1, 2)]
        await machine.has_begun(2)
        machine.latch.open()
        bad, *good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, EngineFailed) and good == [2, 4]


async def test_the_pace_is_that_of_all_batches_together() -> None:
    machine = Machine(max_batch_size=1)
    async with serving(machine.batcher, machine.latch):
        all_done = asyncio.ensure_future(machine.batcher.submit_all([Job(work, cost=10) for work in range(4)]))
        await machine.has_begun(2)
        await advance(1.0)
        machine.latch.let_through(2)
        await machine.has_begun(4)
        assert machine.batcher._pace.cost_in(1.0) == 20
        machine.latch.open()
        await all_done


async def test_draining_waits_for_all_and_stopping_answers_all() -> None:
    machine = Machine(max_batch_size=1)
    async with serving(machine.batcher, machine.latch):
        calls = [submit(machine.batcher, work) for work in range(3)]
        await machine.has_begun(2)
        draining = asyncio.ensure_future(machine.batcher.drain())
        await settle()
        assert not draining.done()
        machine.latch.open()
        assert await asyncio.gather(*calls) == [0, 2, 4]
        await draining
    machine = Machine(max_batch_size=1)
    async with serving(machine.batcher, machine.latch):
        calls = [submit(machine.batcher, work) for work in range(3)]
        await machine.has_begun(2)
    assert {type(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)} == {ShuttingDown}
