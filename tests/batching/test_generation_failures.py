"""Step-wise batches when a step fails: the row at fault ends, the others never notice, and no token is lost."""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import pytest

from batching.errors import EngineFailed, OutOfMemory
from batching.generation import Joining, StepOutput
from batching.job import Caller, Job, Priority
from tests.batching.fakes import (
    FakeEngine,
    Latch,
    Reader,
    Script,
    generator_of,
    in_step,
    read,
    serving,
    step,
    steps,
)
from tests.clock import advance, until

pytestmark = pytest.mark.anyio


def assert_complete(*readers: Reader) -> None:
    """Every reader got what it would have got alone."""
    for reader in readers:
        assert (reader.tokens, reader.outcome) == (reader.stream.job.work.tokens, "length")


async def finish(*readers: Reader) -> None:
    for reader in readers:
        await reader.result()


# Out of memory


async def test_out_of_memory_preempts_the_youngest_and_no_token_is_lost() -> None:
    engine = FakeEngine(capacity=6)
    batcher = generator_of(engine, max_batch_cost=12)
    async with serving(batcher):
        readers = [read(batcher, Script(name, 4), cost=4) for name in "abc"]
        await finish(*readers)
        assert_complete(*readers)
    # Three rows hold 3, 6, then 9 tokens. What did not fit cost 12, so that 6 is the limit: one row of 4.
    assert engine.steps == ["a b c", "a b c", "a b c", *"aa", *"bb", *"cc"]
    assert engine.resets == 1
    assert engine.violations == []


async def test_preempted_rows_run_before_those_that_wait_and_in_their_order() -> None:
    engine = FakeEngine(capacity=4)
    batcher = generator_of(engine, max_batch_size=3, max_batch_cost=12)
    async with serving(batcher):
        readers = [read(batcher, Script(name, 2), cost=4) for name in "abcd"]
        await finish(*readers)
        assert_complete(*readers)
    assert engine.steps == ["a b c", "a b c", "a", "b", "c", "d", "d"]


async def test_a_preempted_request_has_started_when_it_ran_first() -> None:
    engine = FakeEngine(capacity=3, latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_cost=4)
    start = anyio.current_time()
    async with serving(batcher, engine.latch):
        readers = [read(batcher, Script(name, 3), cost=2) for name in "ab"]
        await in_step(engine, 1)
        await advance(5.0)
        engine.latch.open()
        await finish(*readers)
        assert_complete(*readers)
    assert engine.steps == ["a b", "a b", *"aa", *"bb"]
    assert [reader.stream.job.timing.started for reader in readers] == [start, start]


async def test_the_limit_grows_back_after_the_cool_down() -> None:
    engine = FakeEngine(capacity=3)
    batcher = generator_of(engine, max_batch_cost=8)
    async with serving(batcher):
        await finish(*(read(batcher, Script(name, 1), cost=2) for name in "abcd"))
        assert engine.steps == ["a b c d", "a b", "c d"]
        engine.capacity = 100
        engine.steps.clear()
        await advance(60.0)
        await finish(*(read(batcher, Script(name, 1), cost=2) for name in "abcd"))
        assert engine.steps == ["a b", "c d"]  # five at most
        engine.steps.clear()
        await advance(180.0)
        await finish(*(read(batcher, Script(name, 1), cost=2) for name in "abcd"))
        assert engine.steps == ["a b c d"]


async def test_a_request_that_does_not_fit_alone_is_told_so_after_its_last_token() -> None:
    engine = FakeEngine(capacity=3)
    batcher = generator_of(engine)
    async with serving(batcher):
        a, b = read(batcher, Script("a", 9)), read(batcher, Script("b", 3))
        tokens, outcome = await a.result()
        assert (tokens, type(outcome)) == (["a0", "a1", "a2"], OutOfMemory)
        await finish(b)
        assert_complete(b)
    assert engine.violations == []


async def test_a_background_row_that_is_preempted_waits_for_interactive_ones() -> None:
    engine = FakeEngine(capacity=2, latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_cost=2)
    async with serving(batcher, engine.latch):
        readers = [read(batcher, Script(name, 2), Caller(priority=Priority.BACKGROUND)) for name in "ab"]
        await in_step(engine, 1)
        readers.append(read(batcher, Script("c", 2)))
        engine.latch.open()
        await finish(*readers)
        assert_complete(*readers)
    assert engine.steps == ["a b", "a c", *"cc", "a", "b"]  # b made room for c; then memory ran out


async def test_who_stays_is_not_blamed_for_memory_that_others_took_too() -> None:
    engine = FakeEngine(capacity=2, latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        leaving = [batcher.open(Job(Script(name))) for name in "ab"]
        c = read(batcher, Script("c", 2))
        await in_step(engine, 1)
        for stream in leaving:
            stream.close()
        engine.latch.open()
        await finish(c)
        assert_complete(c)
    assert engine.steps == ["a b c", "c", "c"]
    assert engine.violations == []


async def test_the_limit_follows_what_ran_not_who_stayed() -> None:
    engine = FakeEngine(capacity=3, latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_cost=8)
    async with serving(batcher, engine.latch):
        leaving = [batcher.open(Job(Script(name), cost=2)) for name in "abcd"]
        await in_step(engine, 1)
        for stream in leaving:
            stream.close()
        readers = [read(batcher, Script(name, 1), cost=2) for name in "ef"]
        engine.latch.open()
        await finish(*readers)
    assert engine.steps == ["a b c d", "e f"]


# Poison


async def test_a_poison_at_its_prefill_fails_alone() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a, b = read(batcher, Script("a", 4)), read(batcher, Script("b", 4))
        await in_step(engine, 1)
        poison = read(batcher, Script("p", fails_at=0))
        engine.latch.open()
        await finish(a, b, poison)
        assert_complete(a, b)
        assert (poison.tokens, type(poison.outcome)) == ([], EngineFailed)
    assert engine.steps == ["a b", "a b p", "b p", "p", "b", "a", "a b", "a b"]
    assert engine.violations == []


async def test_a_poison_at_a_later_step_fails_alone_with_the_tokens_it_had() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        a, poison, b = (
            read(batcher, Script("a", 6)),
            read(batcher, Script("p", 6, fails_at=3)),
            read(batcher, Script("b", 6)),
        )
        await finish(a, poison, b)
        assert_complete(a, b)
        assert (poison.tokens, type(poison.outcome)) == (["p0", "p1", "p2"], EngineFailed)
    assert engine.violations == []


@pytest.mark.parametrize("culprit", [0, 1, 15, 16, 30, 31])
async def test_one_poison_among_32_is_found_wherever_it_stands(culprit: int) -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        scripts = [Script(f"row-{i}-", 3, fails_at=1 if i == culprit else None) for i in range(32)]
        readers = [read(batcher, script) for script in scripts]
        await finish(*readers)
        poison = readers.pop(culprit)
        assert_complete(*readers)
        assert (poison.tokens, type(poison.outcome)) == ([f"row-{culprit}-0"], EngineFailed)
    assert engine.violations == []
    # A step, the one that fails, two for each of the five halvings, and the last: whoever passes a trial has moved on.
    assert batcher.steps == 1 + 1 + 2 * 5 + 1


async def test_several_poisons_of_one_batch_are_all_found() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        poisons = [read(batcher, Script(f"p{i}-", fails_at=i % 3)) for i in range(8)]
        readers = [read(batcher, Script(name)) for name in "abcdefgh"]
        await finish(*poisons, *readers)
        assert_complete(*readers)
        assert [len(poison.tokens) for poison in poisons] == [0, 1, 2, 0, 1, 2, 0, 1]
        assert all(isinstance(poison.outcome, EngineFailed) for poison in poisons)
    assert engine.violations == []


async def test_an_answer_outlives_any_number_of_poisons_beside_it() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        survivor = read(batcher, Script("a", 1_000))
        for i in range(20):
            poison = read(batcher, Script(f"p{i}-", fails_at=0))
            await finish(poison)
            assert isinstance(poison.outcome, EngineFailed)
        await finish(survivor)
        assert_complete(survivor)


async def test_an_answer_outlives_poisons_that_come_faster_than_they_are_found() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        survivor = read(batcher, Script("a", 30))
        poisons = [read(batcher, Script("p", fails_at=0))]
        while len(poisons) < 20:  # the next one is there before the last one is known
            await poisons[-1].result()
            poisons.append(read(batcher, Script("p", fails_at=0)))
        await finish(survivor, *poisons)
        assert_complete(survivor)


async def test_an_answer_outlives_any_number_of_passing_faults() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        survivors = [read(batcher, Script(name, 60)) for name in "ab"]
        for i in range(10):
            fault = batcher.open(Job(Script(f"p{i}-", fails_at=0)))
            await steps(batcher, engine, 2)
            fault.close()
            await steps(batcher, engine, 3)
        engine.latch.open()
        await finish(*survivors)
        assert_complete(*survivors)


async def test_rows_that_fail_only_together_are_ended_after_three_retries() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        a, b = read(batcher, Script("a", 99, quarrels_with="b")), read(batcher, Script("b", 99))
        await finish(a, b)
        assert engine.steps == ["a b", "b", "a"] * 3 + ["a b"]
        for reader in (a, b):
            assert (len(reader.tokens), type(reader.outcome)) == (3, EngineFailed)
        assert await read(batcher, Script("c", 1)).result() == (["c0"], "length")
    assert engine.violations == []


async def test_who_stays_is_not_blamed_for_a_poison_that_left() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        poison = batcher.open(Job(Script("p", fails_at=0)))
        a = read(batcher, Script("a"))
        await in_step(engine, 1)
        poison.close()
        engine.latch.open()
        await finish(a)
        assert_complete(a)
    assert engine.steps == ["p a", "a", "a", "a"]
    assert engine.violations == []


async def test_a_suspect_may_leave_while_it_waits_for_its_trial() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        poison = batcher.open(Job(Script("p", fails_at=0)))
        readers = [read(batcher, Script(name)) for name in "ab"]
        await step(batcher, engine)
        await in_step(engine, 2)
        poison.close()
        engine.latch.open()
        await finish(*readers)
        assert_complete(*readers)
    assert engine.steps == ["p a b", *["a b"] * 3]
    assert engine.violations == []


async def test_a_suspect_may_leave_during_its_trial() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a"))
        poison = batcher.open(Job(Script("p", fails_at=0)))
        await step(batcher, engine)
        await in_step(engine, 2)
        poison.close()
        engine.latch.open()
        await finish(a)
        assert_complete(a)
    assert engine.steps == ["a p", "p", "a", "a", "a"]
    assert not poison.ended  # nobody is there to be told
    assert engine.violations == []


async def test_who_comes_during_a_search_joins_after_it() -> None:
    engine = FakeEngine(latch=Latch(closed=True))
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a, poison = read(batcher, Script("a", 2)), read(batcher, Script("p", fails_at=0))
        await step(batcher, engine)
        b = read(batcher, Script("b", 2))
        engine.latch.open()
        await finish(a, poison, b)
        assert_complete(a, b)
    assert engine.steps == ["a p", "p", "a", "a b", "b"]


async def test_out_of_memory_during_a_search_does_not_lose_the_suspects() -> None:
    engine = FakeEngine(capacity=2)
    batcher = generator_of(engine)
    async with serving(batcher):
        poison = read(batcher, Script("p", 2, fails_at=1))
        readers = [read(batcher, Script(name, 2)) for name in "abc"]
        await finish(poison, *readers)
        assert_complete(*readers)
        assert (poison.tokens, type(poison.outcome)) == (["p0"], EngineFailed)
    assert engine.violations == []


async def test_a_broken_engine_fails_everyone_and_a_repaired_one_serves_on() -> None:
    engine = FakeEngine()
    batcher = generator_of(engine)
    async with serving(batcher):
        broken = [read(batcher, Script(name, fails_at=0)) for name in "abcd"]
        await finish(*broken)
        assert all(isinstance(reader.outcome, EngineFailed) for reader in broken)
        readers = [read(batcher, Script(name)) for name in "efgh"]
        await finish(*readers)
        assert_complete(*readers)


@dataclass
class FailsOnce(FakeEngine):
    """Raises in its second step, whoever is there."""

    error: BaseException = field(default_factory=SystemExit)

    def step(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> Sequence[StepOutput[str]]:
        if len(self.steps) == 1:
            self.steps.append("fails")
            raise self.error
        return super().step(joining, leaving)


async def test_an_engine_that_wishes_to_exit_does_not_end_the_loop() -> None:
    batcher = generator_of(FailsOnce(error=SystemExit(1)))
    async with serving(batcher):
        readers = [read(batcher, Script(name)) for name in "ab"]
        await finish(*readers)
        assert_complete(*readers)


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError()])
async def test_a_step_over_nobody_may_fail_too(error: BaseException) -> None:
    engine = FailsOnce(latch=Latch(closed=True), error=error)
    batcher = generator_of(engine)
    async with serving(batcher, engine.latch):
        a = batcher.open(Job(Script("a")))
        await in_step(engine, 1)
        a.close()
        engine.latch.open()
        await until(lambda: batcher.steps == 2)
        readers = [read(batcher, Script(name, 1)) for name in "bc"]
        await finish(*readers)
        assert_complete(*readers)
    assert engine.steps == ["a", "fails", "b c"]


class Tensor:
    """Something large that must be gone before the rows are tried again."""


async def test_tensors_of_a_failed_step_are_dead_when_the_engine_is_reset() -> None:
    tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()
    alive: list[int] = []

    class Engine(FakeEngine):
        def step(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> Sequence[StepOutput[str]]:
            tensor = Tensor()
            tensors.add(tensor)
            try:
                return super().step(joining, leaving)
            except MemoryError as error:
                raise MemoryError("out of memory") from error

        def reset(self) -> None:
            alive.append(len(tensors))
            super().reset()

    batcher = generator_of(Engine(capacity=3))
    async with serving(batcher):
        readers = [read(batcher, Script(name, 1)) for name in "abcd"]
        await finish(*readers)
        assert_complete(*readers)
    assert alive == [0]


async def test_what_the_engine_raised_is_logged_with_its_place_but_not_told(caplog: pytest.LogCaptureFixture) -> None:
    batcher = generator_of(FakeEngine())
    async with serving(batcher):
        _, outcome = await read(batcher, Script("a", fails_at=0)).result()
    assert str(outcome) == "the model failed on this request"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "_fail_if_scripted" in record.getMessage()


async def test_a_request_preempted_past_its_deadline_is_not_resumed() -> None:
    engine = FakeEngine(capacity=3, latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_cost=4)
    deadline = anyio.current_time() + 5.0
    async with serving(batcher, engine.latch):
        a = read(batcher, Script("a", 3), cost=2)
        b = read(batcher, Script("b", 3), Caller(deadline=deadline), cost=2)
        await steps(batcher, engine, 2)
        await advance(5.0)
        engine.latch.open()
        await finish(a, b)
        assert_complete(a)
    assert engine.steps == ["a b", "a b", "a", "a"]
