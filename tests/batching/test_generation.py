"""Step-wise batches: who is in which step, counted one by one."""

from collections.abc import Sequence
from unittest.mock import Mock

import anyio
import pytest

from batching.context import current_requests
from batching.errors import DeadlineExceeded, EngineFailed, QueueFull, ShuttingDown
from batching.generation import ContinuousBatcher, Joining, StepOutput
from batching.job import Caller, Job, Priority
from batching.limits import Limits
from batching.scheduler import Scheduler
from batching.worker import Worker
from tests.batching.fakes import (
    FakeEngine,
    Latch,
    Poison,
    Reader,
    Script,
    generator_of,
    in_step,
    read,
    serving,
    step,
    steps,
)
from tests.clock import advance, settle, until

pytestmark = pytest.mark.anyio


def held_engine() -> FakeEngine:
    return FakeEngine(latch=Latch(closed=True))


# Joining and leaving


async def test_a_lone_request_takes_a_step_a_token() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        reader = read(batcher, Script("a", length=3))
        assert await reader.result() == (["a0", "a1", "a2"], "length")
    assert engine.steps == ["a", "a", "a"]
    assert batcher.steps == 3


async def test_a_lone_request_starts_at_once() -> None:
    batcher = generator_of(FakeEngine())
    job = Job[Script, str](Script("a"))
    async with serving(batcher):
        await settle()
        await Reader(batcher.open(job)).result()
    assert job.timing.queue_time == 0.0


async def test_requests_join_and_leave_a_running_batch_at_any_step() -> None:
    engine = held_engine()
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", length=5))
        await steps(batcher, engine, 2)
        b = read(batcher, Script("b", length=2))
        await steps(batcher, engine, 2)  # the third step was under way when b came
        c = read(batcher, Script("c", length=3))
        engine.latch.open()
        for reader, name, length in ((a, "a", 5), (b, "b", 2), (c, "c", 3)):
            assert await reader.result() == (Script(name, length).tokens, "length")
    assert engine.steps == ["a", "a", "a", "a b", "a b", "c", "c", "c"]
    assert engine.violations == []


async def test_tokens_are_read_as_they_come() -> None:
    engine = held_engine()
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        reader = read(batcher, Script("a"))
        for tokens in (["a0"], ["a0", "a1"], ["a0", "a1", "a2"]):
            await step(batcher, engine)
            assert reader.tokens == tokens


async def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        async with batcher.open(Job(Script("a", length=20))) as unread:
            b = read(batcher, Script("b", length=30))
            assert await b.result() == (Script("b", 30).tokens, "length")
            assert await unread.read() == Script("a", 20).tokens
            assert (await unread.read(), unread.finish_reason) == ([], "length")
    assert batcher.steps == 30


async def test_an_error_of_one_row_ends_that_row_alone() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        a, b = read(batcher, Script("a", error_at=1)), read(batcher, Script("b"))
        tokens, outcome = await a.result()
        assert (tokens, type(outcome)) == (["a0"], Poison)
        assert await b.result() == (["b0", "b1", "b2"], "length")
    assert engine.steps == ["a b", "a b", "b"]


async def test_rows_are_bounded_in_number_and_the_next_takes_a_free_place() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine, max_batch_size=2)
    async with serving(batcher):
        readers = [read(batcher, Script(name, length)) for name, length in (("a", 1), ("b", 3), ("c", 2))]
        for reader in readers:
            await reader.result()
    assert engine.steps == ["a b", "b c", "b c"]


async def test_rows_are_bounded_in_cost() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine, max_batch_cost=100)
    async with serving(batcher):
        readers = [
            read(batcher, Script("a", 1), cost=60),
            read(batcher, Script("b", 2), cost=40),
            read(batcher, Script("c", 1), cost=61),  # does not fit beside b
            read(batcher, Script("d", 1), cost=500),  # runs by itself
            read(batcher, Script("e", 1), cost=1),
        ]
        for reader in readers:
            await reader.result()
    assert engine.steps == ["a b", "b", "c", "d", "e"]


async def test_interactive_requests_join_before_background_requests() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        readers = [read(batcher, Script("a", 1))]
        await in_step(engine, 1)
        readers += [read(batcher, Script("b", 1), Caller(priority=Priority.BACKGROUND)), read(batcher, Script("c", 1))]
        engine.latch.open()
        for reader in readers:
            await reader.result()
    assert engine.steps == ["a", "c", "b"]


async def test_a_row_that_has_no_token_in_a_step_stays() -> None:
    class Slow(FakeEngine):
        """Needs two steps for every token, as a long prompt does."""

        def step(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> Sequence[StepOutput[str]]:
            if joining:
                self._change_rows(joining, leaving)
                return [StepOutput(entry.id) for entry in joining]
            return super().step(joining, leaving)

    engine = Slow()
    batcher = generator_of(engine)
    async with serving(batcher):
        assert await read(batcher, Script("a", 2)).result() == (["a0", "a1"], "length")
    assert batcher.steps == 3


async def test_a_request_knows_when_it_waited_and_when_it_ran() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    job = Job[Script, str](Script("b", 2))
    start = anyio.current_time()
    async with serving(batcher, engine.latch):
        read(batcher, Script("a", 1))
        await in_step(engine, 1)
        reader = Reader(batcher.open(job))
        await advance(3.0)
        await step(batcher, engine)
        await in_step(engine, 2)
        await advance(2.0)
        engine.latch.open()
        await reader.result()
    assert (job.timing.arrived, job.timing.started, job.timing.ended) == (start, start + 3.0, start + 5.0)
    assert job.timing.batch_size == 1


async def test_the_engine_knows_which_requests_it_works_for() -> None:
    seen: list[tuple[str, ...]] = []

    class Engine(FakeEngine):
        def step(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> Sequence[StepOutput[str]]:
            seen.append(current_requests.get())
            return super().step(joining, leaving)

    batcher = generator_of(Engine())
    async with serving(batcher):
        a = read(batcher, Script("a", 1), Caller("req-1"))
        b = read(batcher, Script("b", 2), Caller("req-2"))
        await a.result()
        await b.result()
    assert seen == [("req-1", "req-2"), ("req-2",)]


async def test_a_batcher_may_be_made_in_the_worker_thread() -> None:
    worker = Worker("model")

    def load() -> ContinuousBatcher[Script, str]:
        return ContinuousBatcher("model", FakeEngine(), Limits(), worker=worker)

    batcher = await worker.run(load)
    async with serving(batcher):
        assert await read(batcher, Script("a", 1)).result() == (["a0"], "length")


async def test_an_idle_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Mock(side_effect=Scheduler.next_batch)
    monkeypatch.setattr(Scheduler, "next_batch", lambda *args, **kwargs: looks(*args, **kwargs))
    batcher = generator_of(FakeEngine())
    async with serving(batcher):
        await read(batcher, Script("a", 1)).result()
        await settle()
        looks.reset_mock()
        await advance(3600.0)
        looks.assert_not_called()


# Clients that leave


async def test_a_client_that_leaves_the_queue_is_never_in_a_step() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", 2))
        await in_step(engine, 1)
        b = batcher.open(Job(Script("b")))
        assert batcher.waiting == 1
        b.close()
        assert batcher.waiting == 0
        c = read(batcher, Script("c", 1))
        engine.latch.open()
        await a.result()
        await c.result()
    assert engine.steps == ["a", "a", "c"]
    assert engine.violations == []


async def test_a_client_that_leaves_frees_its_row_within_one_step() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        a = batcher.open(Job(Script("a", length=1_000)))
        b = read(batcher, Script("b", length=1))
        await step(batcher, engine)
        await in_step(engine, 2)
        a.close()
        assert a.job.cancel.cancelled
        assert batcher.running == 0
        engine.latch.open()
        assert await b.result() == (["b0"], "length")
    assert engine.steps == ["a", "a", "b"]
    assert a.generated == ["a0"]  # what the step under way gave is dropped
    assert engine.violations == []


async def test_the_row_of_the_last_client_is_given_up_too() -> None:
    engine = held_engine()
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a = batcher.open(Job(Script("a", length=1_000)))
        await in_step(engine, 1)
        a.close()
        engine.latch.open()
        await until(lambda: batcher.steps == 2)
        await settle()
        assert batcher.steps == 2
        assert engine.rows == {}
    assert engine.steps == ["a", ""]


async def test_a_client_may_leave_in_the_very_step_that_ends_its_answer() -> None:
    engine = held_engine()
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a, b = batcher.open(Job(Script("a", length=1))), batcher.open(Job(Script("b", error_at=0)))
        c = read(batcher, Script("c", length=3))
        await in_step(engine, 1)
        a.close()
        b.close()
        engine.latch.open()
        assert await c.result() == (["c0", "c1", "c2"], "length")
    assert engine.steps == ["a b c", "c", "c"]
    assert engine.violations == []


async def test_closing_again_or_after_the_end_changes_nothing() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        stream = batcher.open(Job(Script("a", 1)))
        reader = Reader(stream)
        await reader.result()
        stream.close()
        stream.close()
        assert await read(batcher, Script("b", 1)).result() == (["b0"], "length")
    assert engine.steps == ["a", "b"]
    assert engine.violations == []


# Deadlines


async def test_a_request_whose_deadline_passes_in_the_queue_never_runs() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    deadline = anyio.current_time() + 5.0
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", 2))
        await in_step(engine, 1)
        b = read(batcher, Script("b"), Caller(deadline=deadline))
        await settle()
        await advance(5.0)
        assert isinstance(b.outcome, DeadlineExceeded)
        assert batcher.waiting == 0
        engine.latch.open()
        await a.result()
    assert engine.steps == ["a", "a"]


async def test_an_expired_request_that_nobody_reads_is_cleared_away_too() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    stream = batcher.open(Job(Script("a"), Caller(deadline=anyio.current_time())))
    async with serving(batcher):
        await batcher.drain()
        with pytest.raises(DeadlineExceeded):
            await stream.read()
    assert engine.steps == []


async def test_a_request_whose_deadline_passes_while_it_runs_is_told_at_once_and_frees_its_row() -> None:
    engine = held_engine()
    batcher = generator_of(engine)
    deadline = anyio.current_time() + 5.0
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", length=1_000), Caller(deadline=deadline))
        b = read(batcher, Script("b", length=3))
        await step(batcher, engine)
        await in_step(engine, 2)
        await advance(5.0)
        assert a.tokens == ["a0"]
        assert isinstance(a.outcome, DeadlineExceeded)
        engine.latch.open()
        assert await b.result() == (["b0", "b1", "b2"], "length")
    assert engine.steps == ["a b", "a b", "b"]
    assert engine.violations == []


# Bounds


async def test_the_queue_refuses_one_request_too_many() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1, max_queue_size=2)
    async with serving(batcher, engine.latch):
        readers = [read(batcher, Script("a", 1))]
        await in_step(engine, 1)
        readers += [read(batcher, Script("b", 1)), read(batcher, Script("c", 1))]
        with pytest.raises(QueueFull, match="2 requests"):
            batcher.open(Job(Script("d")))
        with pytest.raises(QueueFull):
            batcher.check_room()
        engine.latch.open()
        for reader in readers:
            await reader.result()
        batcher.check_room()
    assert engine.steps == ["a", "b", "c"]


async def test_a_refusal_says_when_to_come_back() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1, max_queue_size=1)
    async with serving(batcher, engine.latch):
        read(batcher, Script("a", 2), cost=10)
        await in_step(engine, 1)
        await advance(1.0)
        await step(batcher, engine)
        read(batcher, Script("b"), cost=30)
        await in_step(engine, 2)
        await advance(1.0)
        await step(batcher, engine)
        read(batcher, Script("c"), cost=40)
        with pytest.raises(QueueFull) as refusal:
            batcher.check_room()
    assert refusal.value.retry_after == 8.0  # a cost of 10 was worked off in two seconds


# The end


async def test_draining_refuses_new_requests_and_finishes_those_admitted() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", 2))
        await in_step(engine, 1)
        b = read(batcher, Script("b", 1))
        drained = anyio.Event()

        async def drain() -> None:
            await batcher.drain()
            drained.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            await settle()
            with pytest.raises(ShuttingDown, match="test-model is shutting down"):
                batcher.open(Job(Script("c")))
            await steps(batcher, engine, 2)
            assert not drained.is_set()
            engine.latch.open()
        assert await a.result() == (["a0", "a1"], "length")
        assert await b.result() == (["b0"], "length")


async def test_when_the_loop_is_stopped_every_stream_ends() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=1)
    async with serving(batcher, engine.latch):
        running = read(batcher, Script("a", 9))
        await step(batcher, engine)
        await in_step(engine, 2)
        waiting = read(batcher, Script("b"))
    tokens, outcome = await running.result()
    assert (tokens, type(outcome)) == (["a0"], ShuttingDown)
    assert isinstance((await waiting.result())[1], ShuttingDown)
    assert (batcher.running, batcher.waiting) == (0, 0)
    await batcher.drain()


async def test_whoever_comes_after_the_loop_has_stopped_is_turned_away() -> None:
    batcher = generator_of(FakeEngine())
    async with serving(batcher):
        await settle()
    with pytest.raises(ShuttingDown):
        batcher.open(Job(Script("a")))


async def test_an_engine_that_cannot_be_reset_fails_its_rows_and_the_loop_goes_on() -> None:
    engine = FakeEngine(fails_to_reset=True)
    batcher = generator_of(engine)
    async with serving(batcher):
        a, b = read(batcher, Script("a", fails_at=1)), read(batcher, Script("b"))
        tokens, outcome = await a.result()
        assert (tokens, type(outcome)) == (["a0"], EngineFailed)
        tokens, outcome = await b.result()
        assert (tokens, type(outcome)) == (["b0"], EngineFailed)
        engine.fails_to_reset = False
        engine.reset()
        assert await read(batcher, Script("c", 1)).result() == (["c0"], "length")


# Priorities


async def test_an_urgent_request_preempts_the_youngest_of_lower_priority_which_resumes_where_it_was() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=2)
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", length=4), Caller(priority=Priority.BACKGROUND))
        b = read(batcher, Script("b", length=4), Caller(priority=Priority.BACKGROUND))
        await steps(batcher, engine, 1)
        c = read(batcher, Script("c", length=2))
        engine.latch.open()
        for reader, name, length in ((a, "a", 4), (b, "b", 4), (c, "c", 2)):
            assert await reader.result() == (Script(name, length).tokens, "length")
    assert engine.steps == ["a b", "a b", "a c", "a c", "b", "b"]
    assert engine.violations == []


async def test_nobody_is_preempted_for_an_equal_or_for_one_who_would_not_fit_anyway() -> None:
    engine = held_engine()
    batcher = generator_of(engine, max_batch_size=2, max_batch_cost=10)
    async with serving(batcher, engine.latch):
        read(batcher, Script("a", length=3), cost=6)
        read(batcher, Script("b", length=3), Caller(priority=Priority.BACKGROUND), 4)
        await steps(batcher, engine, 1)
        c = read(batcher, Script("c", length=1), cost=5)
        engine.latch.open()
        await c.result()
    assert engine.steps[:3] == ["a b", "a b", "a b"]
