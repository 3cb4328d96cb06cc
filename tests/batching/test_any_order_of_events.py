"""Whatever happens in whatever order: every job gets exactly one right answer, and nothing stays behind."""

import asyncio
import gc
import math
import os
import random
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.batcher import Batcher
from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, QueueFull
from batching.generation import ContinuousBatcher
from batching.job import Caller, Job, Priority
from batching.limits import Limits
from batching.stream import TokenStream
from tests.batching.fakes import FakeEngine, FakeModel, Poison, Reader, Script, SteppedWorker, serving, thorough
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Ask:
    """A client comes with works, or scripts, and waits until `patience` seconds have passed."""

    works: tuple[Any, ...]
    priority: Priority
    patience: float | None
    reads: bool = True

    def caller(self) -> Caller:
        deadline = None if self.patience is None else anyio.current_time() + self.patience
        return Caller(priority=self.priority, deadline=deadline)


@dataclass(frozen=True)
class Leave:
    """The client who came as number `index` (modulo how many came) leaves."""

    index: int


@dataclass(frozen=True)
class Pass:
    """So many seconds pass."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """A worker thread does one thing: of several, the one with this number (modulo how many there are)."""

    worker: int = 0


def events(works: st.SearchStrategy[tuple[Any, ...]]) -> st.SearchStrategy[list[Any]]:
    asks = st.builds(
        Ask, works, st.sampled_from(Priority), st.none() | st.integers(0, 4).map(float), reads=st.booleans()
    )
    others = st.builds(Leave, st.integers(0, 30)) | st.builds(Pass, st.integers(1, 60).map(float))
    return st.lists(asks | others | st.builds(Work, st.integers(0, 1)), max_size=30)


def limits(max_cost: int) -> st.SearchStrategy[Limits]:
    return st.builds(
        Limits,
        max_queue_size=st.integers(1, 12),
        max_queue_cost=st.integers(1, 4 * max_cost),
        max_batch_size=st.integers(1, 6),
        max_batch_cost=st.integers(1, max_cost),
        max_wait=st.sampled_from([0.0, 2.0]),
    )


# One-shot


class Submission:
    """A client of the one-shot batcher, and the answers that would be right."""

    def __init__(self, batcher: Batcher[int, int], ask: Ask, model: FakeModel) -> None:
        self.jobs: list[Job[int, int]] = [Job(work, ask.caller(), cost=work) for work in ask.works]
        self.task = asyncio.create_task(batcher.submit_all(self.jobs))
        self.right = _right_outcome(ask.works, model)

    def assert_answered_right(self) -> None:
        assert self.task.done()
        if self.task.cancelled():
            return
        error = self.task.exception()
        outcome = type(error) if error else self.task.result()
        assert outcome in (self.right, QueueFull, DeadlineExceeded)
        if outcome is DeadlineExceeded:
            assert self.jobs[0].is_due(anyio.current_time())
        if outcome is not QueueFull:
            assert all(job.future is not None and job.future.done() for job in self.jobs)


def _right_outcome(works: tuple[int, ...], model: FakeModel) -> list[int] | type[Exception]:
    for work in works:
        if work > model.capacity:
            return OutOfMemory
        if work in model.poison:
            return EngineFailed
    return [2 * work for work in works]


models = st.builds(
    FakeModel, poison=st.sets(st.integers(1, 9), max_size=2), capacity=st.integers(5, 30) | st.just(math.inf)
)


@thorough
@given(events(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)), limits(max_cost=30), models)
async def test_every_submission_is_answered_once_and_right(events: list[Any], limits: Limits, model: FakeModel) -> None:
    workers = [SteppedWorker(), SteppedWorker()]
    batcher = Batcher("model", model, limits, worker=workers[0], beside=workers[1:])
    clients: list[Submission] = []
    async with serving(batcher):
        for event in events:
            match event:
                case Ask():
                    clients.append(Submission(batcher, event, model))
                case Leave(index) if clients:
                    clients[index % len(clients)].task.cancel()
                case Pass(seconds):
                    await advance(seconds)
                case Work(index):
                    workers[index % 2].let_through()
            await settle()
        for worker in workers:
            worker.open()
        draining = asyncio.create_task(batcher.drain())
        while not draining.done():
            await advance(limits.max_wait)
        await settle()
        for client in clients:
            client.assert_answered_right()
        assert (batcher.running, batcher.waiting) == (0, 0)


# Step-wise


class Conversation:
    """A client of the step-wise batcher. Who does not read meanwhile reads everything at the end."""

    def __init__(self, batcher: ContinuousBatcher[Script, str], ask: Ask, script: Script) -> None:
        self.script = script
        self.left = False
        self.stream = batcher.open(Job(script, ask.caller(), cost=script.length))
        self.reader = Reader(self.stream) if ask.reads else None

    def leave(self) -> None:
        self.left = True
        self.stream.close()

    async def finish(self) -> None:
        self.reader = self.reader or Reader(self.stream)
        if self.left:
            self.reader.task.cancel()
        else:
            await self.reader.task

    def assert_answered_right(self, capacity: float) -> None:
        assert self.reader is not None
        tokens, outcome = self.reader.tokens, self.reader.outcome
        assert tokens == self.script.tokens[: len(tokens)]
        if self.left or (isinstance(outcome, DeadlineExceeded) and self.stream.job.is_due(anyio.current_time())):
            return
        count, right = _right_end(self.script, capacity)
        assert (len(tokens), outcome if isinstance(outcome, str) else type(outcome)) == (count, right)


def _right_end(script: Script, capacity: float) -> tuple[int, str | type[Exception]]:
    """How many tokens the script gives when it runs alone, and how it ends."""
    for position in range(script.length):
        if position + 1 > capacity:
            return position, OutOfMemory
        if position == script.fails_at:
            return position, EngineFailed
        if position == script.error_at:
            return position, Poison
    return script.length, "length"


scripts = st.builds(
    Script,
    st.just("unnamed"),
    length=st.integers(1, 6),
    fails_at=st.none() | st.integers(0, 6),
    error_at=st.none() | st.none() | st.integers(0, 6),
)
MAX_POISONS = 3
"""Beyond that many faults in a row whose cause has left, rows are given up by intention."""


@thorough
@given(events(st.tuples(scripts)), limits(max_cost=20), st.integers(2, 20) | st.just(math.inf))
async def test_every_stream_ends_once_with_its_own_tokens(events: list[Any], limits: Limits, capacity: float) -> None:
    worker, engine = SteppedWorker(), FakeEngine(capacity)
    batcher = ContinuousBatcher("model", engine, limits, worker=worker)
    clients: list[Conversation] = []
    poisons = 0
    async with serving(batcher):
        for event in events:
            match event:
                case Ask(works=(script,)):
                    poisons += script.fails_at is not None
                    fails_at = script.fails_at if poisons <= MAX_POISONS else None
                    script = replace(script, name=f"{len(clients)}-", fails_at=fails_at)
                    try:
                        clients.append(Conversation(batcher, event, script))
                    except QueueFull:
                        pass
                case Leave(index) if clients:
                    clients[index % len(clients)].leave()
                case Pass(seconds):
                    await advance(seconds)
                case Work():
                    worker.let_through()
            await settle()
        worker.open()
        await batcher.drain()
        for client in clients:
            await client.finish()
            client.assert_answered_right(capacity)
        await settle()
        assert (batcher.running, batcher.waiting, engine.rows) == (0, 0, {})
    assert engine.violations == []


# For long


SOAK_EVENTS = int(os.environ.get("SOAK_EVENTS", "10000"))


class Soak:
    """Clients that come, leave, fall silent and are cut off, while memory shrinks and grows and rows go wrong."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.worker, self.engine = SteppedWorker(), FakeEngine()
        limits = Limits(max_queue_size=12, max_queue_cost=60, max_batch_size=6, max_batch_cost=25)
        self.batcher = ContinuousBatcher("model", self.engine, limits, worker=self.worker)
        self.clients: list[Conversation] = []
        self.streams: weakref.WeakSet[TokenStream[Script, str]] = weakref.WeakSet()
        self.came = 0
        self.ends: Counter[str] = Counter()

    async def happen(self) -> None:
        """One event."""
        event = self.chance.choices(
            [self.join, self.leave, self.cancel, self.change_memory, self.work, self.wait], [6, 2, 1, 0.3, 12, 1]
        )[0]
        await event()
        await settle(4)
        self.clients = [client for client in self.clients if not self.is_done(client)]

    def is_done(self, client: Conversation) -> bool:
        if client.reader is None or not client.reader.task.done():
            return False
        client.assert_answered_right(math.inf)
        outcome = client.reader.outcome
        self.ends["left" if client.left else outcome if isinstance(outcome, str) else type(outcome).__name__] += 1
        return True

    async def join(self) -> None:
        chance, self.came = self.chance, self.came + 1
        length = chance.randint(1, 5)
        script = Script(f"{self.came}-", length, error_at=chance.choice([None, None, None, chance.randint(0, length)]))
        patience = chance.choice([None, None, float(chance.randint(0, 9))])
        ask = Ask((script,), chance.choice(list(Priority)), patience, reads=True)
        try:
            self.clients.append(Conversation(self.batcher, ask, script))
        except QueueFull:
            self.ends["QueueFull"] += 1
        else:
            self.streams.add(self.clients[-1].stream)

    async def leave(self) -> None:
        """Who closes a stream does not read it any further."""
        if self.clients:
            client = self.chance.choice(self.clients)
            assert client.reader is not None
            client.leave()
            client.reader.task.cancel()

    async def cancel(self) -> None:
        if self.clients:
            client = self.chance.choice(self.clients)
            assert client.reader is not None
            client.left = True
            client.reader.task.cancel()

    async def change_memory(self) -> None:
        """One row alone, of at most five tokens, always has room."""
        self.engine.capacity = self.chance.choice([5, 8, 12, math.inf])

    async def work(self) -> None:
        self.worker.let_through()

    async def wait(self) -> None:
        await advance(self.chance.choice([0.1, 1.0, 30.0]))

    async def finish(self) -> None:
        self.worker.open()
        await self.batcher.drain()
        await settle()
        self.clients = [client for client in self.clients if not self.is_done(client)]


@pytest.mark.parametrize("seed", [1])
async def test_thousands_of_events_leave_no_row_no_job_and_nobody_waiting(seed: int) -> None:
    soak = Soak(random.Random(seed))
    async with serving(soak.batcher):
        for _ in range(SOAK_EVENTS):
            await soak.happen()
        await soak.finish()
        assert (soak.batcher.running, soak.batcher.waiting, soak.engine.rows, soak.clients) == (0, 0, {}, [])
        assert soak.engine.violations == []
        gc.collect()
        assert len(soak.streams) == 0
    assert soak.engine.resets > 0
    assert set(soak.ends) >= {"length", "left", "Poison", "DeadlineExceeded", "QueueFull"}
