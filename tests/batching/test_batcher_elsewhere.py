"""One-shot batches of a model in another process: stopped when nobody waits, halved as any others."""

import asyncio
from collections.abc import Sequence

import anyio
import pytest

from batching.batcher import Batcher
from batching.context import current_requests
from batching.errors import DeadlineExceeded, EngineFailed, ProcessBroken, ProcessDied, ShuttingDown
from batching.job import Caller, Job
from batching.limits import Limits
from tests.batching.fakes import serving, submit
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio


class Elsewhere:
    """Doubles when the gate is open. `stopped` holds the batches that were cancelled."""

    def __init__(self, *, fails: dict[int, Exception] | None = None) -> None:
        self.gate = asyncio.Event()
        self.batches: list[list[int]] = []
        self.stopped: list[list[int]] = []
        self.requests: list[Sequence[str]] = []
        self._fails = fails or {}

    async def __call__(self, works: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(works))
        self.requests.append(current_requests.get())
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.append(list(works))
            raise
        for work in works:
            if work in self._fails:
                raise self._fails[work]
        return [2 * work for work in works]


def batcher_of(model: Elsewhere, **limits: int) -> Batcher[int, int]:
    return Batcher("elsewhere", model, Limits(**limits), worker=None)


async def test_a_batch_is_stopped_as_soon_as_nobody_waits_for_it_and_the_queue_is_kept() -> None:
    model = Elsewhere()
    batcher = batcher_of(model, max_batch_size=2)
    async with serving(batcher):
        leaving = [submit(batcher, work) for work in (1, 2)]
        staying = submit(batcher, 3)
        await settle()
        leaving[0].cancel()
        await settle()
        assert (model.stopped, batcher.running) == ([], 2)
        leaving[1].cancel()
        await settle()
        assert (model.stopped, model.batches) == ([[1, 2]], [[1, 2], [3]])
        model.gate.set()
        assert await staying == 6
        assert batcher.running == 0


async def test_a_batch_whose_deadlines_pass_is_stopped() -> None:
    model = Elsewhere()
    batcher = batcher_of(model)
    async with serving(batcher):
        call = submit(batcher, 1, Caller(deadline=anyio.current_time() + 5))
        await settle()
        await advance(5)
        with pytest.raises(DeadlineExceeded):
            await call
        await settle()
        assert (model.stopped, batcher.running) == ([[1]], 0)


async def test_a_batch_for_which_one_still_waits_runs_to_its_end() -> None:
    model = Elsewhere()
    batcher = batcher_of(model)
    async with serving(batcher):
        leaving, staying = submit(batcher, 1), submit(batcher, 2)
        await settle()
        leaving.cancel()
        await settle()
        model.gate.set()
        assert await staying == 4
        assert (model.batches, model.stopped) == ([[1, 2]], [])


async def test_who_leaves_the_queue_stops_no_batch() -> None:
    model = Elsewhere()
    batcher = batcher_of(model, max_batch_size=1)
    async with serving(batcher):
        running, waiting = submit(batcher, 1), submit(batcher, 2)
        await settle()
        waiting.cancel()
        await settle()
        model.gate.set()
        assert await running == 2
        assert (model.batches, model.stopped) == ([[1]], [])


async def test_a_stopped_batch_tells_nothing_about_the_pace() -> None:
    model = Elsewhere()
    batcher = Batcher("elsewhere", model, Limits(max_batch_cost=1000, max_batch_seconds=1.0), worker=None)
    before = batcher._max_cost(0.0)
    async with serving(batcher):
        call = asyncio.create_task(batcher.submit(Job(1, cost=1000)))
        await settle()
        call.cancel()
        await settle()
        assert model.stopped == [[1]]
        assert batcher._max_cost(0.0) == before


async def test_the_death_of_the_process_is_traced_to_the_job_at_fault() -> None:
    model = Elsewhere(fails={2: ProcessDied("gone")})
    model.gate.set()
    batcher = batcher_of(model)
    async with serving(batcher):
        calls = [submit(batcher, work, Caller(f"req-{work}")) for work in range(4)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answers[0], answers[1], answers[3]] == [0, 2, 6]
    assert isinstance(answers[2], EngineFailed)
    assert model.batches == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert model.requests[0] == ("req-0", "req-1", "req-2", "req-3")


async def test_halves_are_not_tried_when_nobody_waits_any_more() -> None:
    model = Elsewhere(fails={1: ProcessDied("gone")})
    batcher = batcher_of(model)
    async with serving(batcher):
        calls = [submit(batcher, work) for work in range(4)]
        await settle()
        model.gate.set()
        model.gate.clear()  # whoever waits goes on, and who comes then does not
        await settle()
        assert model.batches == [[0, 1, 2, 3], [0, 1]]
        for call in calls:
            call.cancel()
        await settle()
        assert (model.batches, model.stopped, batcher.running) == ([[0, 1, 2, 3], [0, 1]], [[0, 1]], 0)


@pytest.mark.parametrize("error", [ProcessBroken("given up"), ShuttingDown("stopped")])
async def test_what_no_half_could_change_is_the_error_of_all(error: Exception) -> None:
    model = Elsewhere(fails={1: error})
    model.gate.set()
    batcher = batcher_of(model)
    async with serving(batcher):
        answers = await asyncio.gather(*(submit(batcher, work) for work in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(error)] * 3
    assert model.batches == [[0, 1, 2]]


async def test_running_out_of_memory_shrinks_what_runs_together() -> None:
    model = Elsewhere(fails={1: MemoryError()})
    model.gate.set()
    batcher = batcher_of(model, max_batch_cost=8)
    async with serving(batcher):
        await asyncio.gather(*(submit(batcher, work) for work in range(3)), return_exceptions=True)
        assert batcher.stats().out_of_memory == 1
        assert batcher.stats().cost_limit == 1


async def test_the_end_of_the_loop_stops_the_batch() -> None:
    model = Elsewhere()
    batcher = batcher_of(model)
    async with serving(batcher):
        call = submit(batcher, 1)
        await settle()
    with pytest.raises(ShuttingDown):
        await call
    assert model.stopped == [[1]]
