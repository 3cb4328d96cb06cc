"""What batch loops count, on a clock that stands still."""

import asyncio
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from batching.batcher import Batcher
from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, QueueFull, ShuttingDown
from batching.job import Caller, Job, Priority
from batching.limits import Limits
from batching.loop import BatchLoop
from batching.stats import GenerationStats, Histogram, HistogramStats, Outcome, outcome_of
from batching.worker import Worker
from tests.batching.fakes import (
    FakeEngine,
    FakeModel,
    Latch,
    Reader,
    Script,
    batcher_of,
    generator_of,
    in_step,
    read,
    serving,
    steps,
    submit,
)
from tests.clock import MANUAL_CLOCK, advance, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


async def finish(*readers: Reader) -> None:
    for reader in readers:
        await reader.result()


def outcomes(loop: BatchLoop[Any]) -> Mapping[str, int]:
    return {outcome: count for outcome, count in loop.stats().outcomes.items() if count}


def generation(loop: BatchLoop[Any]) -> GenerationStats:
    stats = loop.stats().generation
    assert stats is not None
    return stats


def seen(histogram: HistogramStats) -> dict[float, int]:
    """How many values fell into the bucket that ends at each bound."""
    bounds = [*histogram.bounds, float("inf")]
    return {bound: count for bound, count in zip(bounds, histogram.counts, strict=True) if count}


def test_a_value_is_counted_in_the_bucket_that_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 9.0):
        histogram.observe(value)
    assert histogram.stats() == HistogramStats((1.0, 2.0), (2, 2, 2), 16.5)


def test_stats_do_not_change_afterwards() -> None:
    histogram = Histogram((1.0,))
    before = histogram.stats()
    histogram.observe(1.0)
    assert before == HistogramStats((1.0,), (0, 0), 0.0)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.COMPLETED),
        (DeadlineExceeded(), Outcome.EXPIRED),
        (OutOfMemory(), Outcome.OUT_OF_MEMORY),
        (EngineFailed(), Outcome.FAILED),
        (ShuttingDown(), Outcome.STOPPED),
        (ValueError("no such voice"), Outcome.REJECTED),
    ],
)
def test_an_answer_says_how_its_job_ended(error: Exception | None, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


# One-shot batches


async def test_a_batcher_counts_what_waits_runs_and_is_done() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_batch_size=2)
    async with serving(batcher, model.latch):
        first = submit(batcher, 1)
        await model.busy_with(1)
        others = [submit(batcher, work, cost=5) for work in (2, 3, 4)]
        await settle()
        stats = batcher.stats()
        assert (stats.waiting, stats.waiting_cost, stats.running) == (3, 15, 1)
        await advance(0.2)
        model.latch.open()
        await asyncio.gather(first, *others)
        stats = batcher.stats()
    assert (stats.waiting, stats.waiting_cost, stats.running) == (0, 0, 0)
    assert outcomes(batcher) == {"completed": 4}
    assert seen(stats.batch_size) == {1.0: 2, 2.0: 1}
    assert seen(stats.queue_time) == {0.001: 1, 0.25: 3}
    assert stats.queue_time.sum == pytest.approx(0.6)
    assert stats.generation is None


async def test_a_refused_request_is_counted_once_whatever_its_size() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model, max_queue_size=1)
    async with serving(batcher, model.latch):
        running = submit(batcher, 1)
        await model.busy_with(1)
        waiting = submit(batcher, 2)
        await settle()
        with pytest.raises(QueueFull):
            await batcher.submit_all([Job(3), Job(4)])
        with pytest.raises(QueueFull), batcher.place(Caller(), 2):
            pytest.fail("there is no place")
        assert batcher.stats().refused == 2
        model.latch.open()
        await asyncio.gather(running, waiting)
    assert outcomes(batcher) == {"completed": 2}


async def test_who_leaves_and_whose_time_is_up_are_told_apart() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        leaving = submit(batcher, 1)
        await model.busy_with(1)
        late = submit(batcher, 2, Caller(deadline=anyio.current_time() + 1))
        await settle()
        leaving.cancel()
        await advance(1.0)
        await asyncio.gather(leaving, late, return_exceptions=True)
    assert outcomes(batcher) == {"cancelled": 1, "expired": 1}


async def test_failures_and_out_of_memory_are_counted_and_the_limit_is_seen_to_shrink_and_grow() -> None:
    model = FakeModel(capacity=30, poison=[7])
    batcher = batcher_of(model, max_batch_cost=80)
    async with serving(batcher):
        calls = [submit(batcher, work, cost=work) for work in (20, 20, 40)]
        await asyncio.gather(*calls, return_exceptions=True)
        await settle()
        stats = batcher.stats()
        assert (stats.out_of_memory, stats.cost_limit) == (1, 20)
        assert outcomes(batcher) == {"completed": 2, "out_of_memory": 1}
        await asyncio.gather(submit(batcher, 7), return_exceptions=True)
        assert outcomes(batcher) == {"completed": 2, "out_of_memory": 1, "failed": 1}
        await advance(60.0)
        assert batcher.stats().cost_limit == 30


async def test_an_input_that_the_model_refuses_is_no_failure() -> None:
    def model(works: object) -> list[int | Exception]:
        return [1, ValueError("undecodable")]

    batcher: Batcher[int, int] = Batcher("model", model, Limits(), worker=Worker("model"))
    async with serving(batcher):
        await asyncio.gather(submit(batcher, 0), submit(batcher, 1), return_exceptions=True)
    assert outcomes(batcher) == {"completed": 1, "rejected": 1}


async def test_what_the_end_of_the_process_cuts_off_is_stopped() -> None:
    model = FakeModel(held=True)
    batcher = batcher_of(model)
    async with serving(batcher, model.latch):
        call = submit(batcher, 1)
        await model.busy_with(1)
    with pytest.raises(ShuttingDown):
        await call
    assert outcomes(batcher) == {"stopped": 1}


# Generation


async def test_tokens_are_counted_and_timed_from_admission_to_the_first_and_from_each_to_the_next() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        reader = read(batcher, Script("a", 3))
        await in_step(engine, 1)
        await advance(2.0)
        await steps(batcher, engine, 1)
        await advance(0.02)
        await steps(batcher, engine, 1)
        await advance(0.04)
        engine.latch.open()
        await finish(reader)
        stats = batcher.stats()
    assert generation(batcher).tokens == 3
    assert seen(generation(batcher).time_to_first_token) == {2.5: 1}
    assert seen(generation(batcher).inter_token) == {0.025: 1, 0.05: 1}
    assert seen(stats.batch_size) == {1.0: 3}
    assert seen(stats.queue_time) == {0.001: 1}
    assert outcomes(batcher) == {"completed": 1}


async def test_a_step_that_only_drops_a_row_is_no_batch() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        stream = batcher.open(Job(Script("a", 9)))
        await in_step(engine, 1)
        stream.close()
        await steps(batcher, engine, 1)
        await in_step(engine, 2)
        await steps(batcher, engine, 1)
        stats = batcher.stats()
    assert engine.steps == ["a", ""]
    assert seen(stats.batch_size) == {1.0: 1}
    assert generation(batcher).tokens == 0
    assert outcomes(batcher) == {"cancelled": 1}


async def test_out_of_memory_preempts_and_no_token_is_counted_twice() -> None:
    engine = FakeEngine(capacity=3)
    batcher = generator_of(engine, max_batch_cost=4)
    async with serving(batcher):
        await finish(*(read(batcher, Script(name, 3), cost=2) for name in "ab"))
        stats = batcher.stats()
    assert (stats.out_of_memory, generation(batcher).preempted, generation(batcher).tokens) == (1, 2, 6)
    assert sum(stats.queue_time.counts) == 2
    assert outcomes(batcher) == {"completed": 2}


async def test_a_row_that_makes_room_for_another_is_preempted() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        background = read(batcher, Script("a"), Caller(priority=Priority.BACKGROUND))
        await in_step(engine, 1)
        interactive = read(batcher, Script("b"))
        engine.latch.open()
        await finish(background, interactive)
        stats = batcher.stats()
    assert (generation(batcher).preempted, stats.out_of_memory) == (1, 0)


async def test_rows_that_fail_do_not_fit_or_lose_their_reader_are_told_apart() -> None:
    engine = FakeEngine(capacity=4)
    batcher = generator_of(engine)
    async with serving(batcher):
        await finish(read(batcher, Script("a", fails_at=0)))
        await finish(read(batcher, Script("b", 9)))
        await finish(read(batcher, Script("c", error_at=1)))
        batcher.open(Job(Script("d"))).close()
        batcher.open(Job(Script("e"))).close(Outcome.COMPLETED)
    assert outcomes(batcher) == {"failed": 1, "out_of_memory": 1, "rejected": 1, "cancelled": 1, "completed": 1}


async def test_all_answers_to_a_request_whose_time_is_up_have_expired() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    caller = Caller(deadline=anyio.current_time() + 1)

    async def read_all() -> None:
        async with batcher.open_all([Job(Script(name), caller) for name in "ab"]) as group:
            async for _ in group.read():
                pass

    async with serving(batcher, engine.latch):
        reading = asyncio.create_task(read_all())
        await in_step(engine, 1)
        await advance(1.0)
        with pytest.raises(DeadlineExceeded):
            await reading
    assert outcomes(batcher) == {"expired": 2}
