"""Models that wait on a latch, and a worker without a thread: nothing happens before the test says so."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import settings

from batching.batcher import Batcher
from batching.errors import BatchingError
from batching.generation import ContinuousBatcher, Joining, StepOutput
from batching.job import Caller, Job
from batching.limits import Limits
from batching.loop import BatchLoop
from batching.stats import JOBS, SECONDS, BatchStats, Histogram, Outcome
from batching.stream import TokenStream
from batching.worker import Worker
from tests.clock import settle, until

T = TypeVar("T")
Args = TypeVarTuple("Args")


ANYONE = Caller()

thorough = settings(max_examples=300)
"""For properties of what takes no time."""


IDLE = BatchStats(
    waiting=0,
    waiting_cost=0,
    running=0,
    cost_limit=100,
    refused=0,
    out_of_memory=0,
    outcomes=dict.fromkeys(Outcome, 0),
    batch_size=Histogram(JOBS).stats(),
    queue_time=Histogram(SECONDS).stats(),
)
"""Of a loop that has done nothing yet."""


class Poison(Exception):
    """What a poisonous job makes the model raise."""


class Latch:
    """Where a model call waits in its worker thread until the test lets it go on. `arrived` counts the calls."""

    def __init__(self, *, closed: bool = False) -> None:
        self.arrived = 0
        self._permits = 0.0 if closed else math.inf
        self._changed = threading.Condition()

    def wait(self) -> None:
        with self._changed:
            self.arrived += 1
            self._changed.wait_for(lambda: self._permits > 0)
            self._permits -= 1

    def let_through(self, calls: float = 1) -> None:
        with self._changed:
            self._permits += calls
            self._changed.notify_all()

    def open(self) -> None:
        self.let_through(math.inf)


class SteppedWorker(Worker):
    """Makes the calls on the event loop, one each time the test says so: the same order of events every time."""

    def __init__(self) -> None:
        super().__init__("stepped")
        self._unleashed = False
        self._permits = asyncio.Semaphore(0)

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args, requests: Sequence[str] = ()) -> T:
        if self._unleashed:
            await checkpoint()
        else:
            await self._permits.acquire()
        return function(*args)

    def let_through(self) -> None:
        self._permits.release()

    def open(self) -> None:
        self._unleashed = True
        self._permits.release()


class FakeModel:
    """Doubles its works. A poisonous work makes it raise; more than `capacity` works together do not fit."""

    def __init__(self, *, held: bool = False, poison: Collection[int] = (), capacity: float = math.inf) -> None:
        self.batches: list[list[int]] = []
        self.latch = Latch(closed=held)
        self.poison = poison
        self.capacity = capacity

    def __call__(self, works: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(works))
        self.latch.wait()
        if sum(works) > self.capacity:
            raise MemoryError
        if set(works) & set(self.poison):
            raise Poison
        return [2 * work for work in works]

    async def busy_with(self, *works: int) -> None:
        """Return when the model works on exactly these."""
        await until(lambda: self.batches[-1:] == [list(works)])


@dataclass(frozen=True)
class Script:
    """What becomes of a prompt. Its tokens are its name with their place: "a0", "a1", …

    fails_at: the step that would give this token raises. error_at: the row gets an error of its own instead of it.
    quarrels_with: the step raises whenever that row is in the same batch.
    """

    name: str
    length: int = 3
    fails_at: int | None = None
    error_at: int | None = None
    quarrels_with: str | None = None

    @property
    def tokens(self) -> list[str]:
        return [f"{self.name}{i}" for i in range(self.length)]


@dataclass
class Row:
    script: Script
    position: int


@dataclass
class FakeEngine:
    """Speaks its scripts token by token. More than `capacity` tokens in all rows together do not fit.

    steps: the names of those that were in each step, failed ones too. violations: what a strict engine would not bear.
    """

    capacity: float = math.inf
    latch: Latch = field(default_factory=Latch)
    steps: list[str] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    resets: int = 0
    fails_to_reset: bool = False
    _broken: bool = False

    def step(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> Sequence[StepOutput[str]]:
        self.latch.wait()
        self._change_rows(joining, leaving)
        self.steps.append(" ".join(row.script.name for row in self.rows.values()))
        self._broken = True
        self._fail_if_scripted()
        self._broken = False
        outputs = [self._speak(id, row) for id, row in self.rows.items()]
        for output in outputs:
            if output.dropped:
                del self.rows[output.id]
        return outputs

    def reset(self) -> None:
        if self.fails_to_reset:
            raise Poison
        self.resets += 1
        self._broken = False
        self.rows.clear()

    def _change_rows(self, joining: Sequence[Joining[Script, str]], leaving: Sequence[int]) -> None:
        self._expect(not self._broken, "a failed step was not followed by a reset")
        for id in leaving:
            self._expect(self.rows.pop(id, None) is not None, f"row {id} leaves but is not there")
        for entry in joining:
            self._expect(entry.id not in self.rows, f"row {entry.id} joins but is there already")
            spoken = list(entry.generated)
            self._expect(spoken == entry.prompt.tokens[: len(spoken)], f"row {entry.id} resumes after {spoken}")
            self.rows[entry.id] = Row(entry.prompt, len(spoken))
        self._expect(len(self.rows) + len(leaving) > 0, "a step over nobody")

    def _fail_if_scripted(self) -> None:
        names = {row.script.name for row in self.rows.values()}
        if sum(row.position + 1 for row in self.rows.values()) > self.capacity:
            raise MemoryError
        for row in self.rows.values():
            if row.position == row.script.fails_at or row.script.quarrels_with in names:
                raise Poison

    def _speak(self, id: int, row: Row) -> StepOutput[str]:
        if row.position == row.script.error_at:
            return StepOutput(id, error=Poison())
        row.position += 1
        done = row.position == row.script.length
        return StepOutput(id, row.script.tokens[row.position - 1], "length" if done else None)

    def _expect(self, condition: bool, violation: str) -> None:
        if not condition:
            self.violations.append(violation)


class Reader:
    """A client that reads its stream to the end. outcome: the finish reason, or the error."""

    def __init__(self, stream: TokenStream[Script, str]) -> None:
        self.stream = stream
        self.tokens: list[str] = []
        self.outcome: str | Exception | None = None
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self.stream:
            try:
                while tokens := await self.stream.read():
                    self.tokens += tokens
                self.outcome = self.stream.finish_reason
            except (BatchingError, Poison) as error:
                self.outcome = error

    async def result(self) -> tuple[list[str], str | Exception | None]:
        await self.task
        return self.tokens, self.outcome


def batcher_of(model: FakeModel, **limits: Any) -> Batcher[int, int]:
    return Batcher("test-model", model, Limits(**limits), worker=Worker("test-model"))


def generator_of(engine: FakeEngine, **limits: Any) -> ContinuousBatcher[Script, str]:
    return ContinuousBatcher("test-model", engine, Limits(**limits), worker=Worker("test-model"))


@asynccontextmanager
async def serving(batcher: BatchLoop[Any], latch: Latch | None = None) -> AsyncIterator[None]:
    """The batch loop at work while the block runs. At the end nothing is held any more, so that no thread stays."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.run)
        try:
            yield
        finally:
            if latch is not None:
                latch.open()
            tasks.cancel_scope.cancel()


def submit(
    batcher: Batcher[int, int],
    work: int,
    caller: Caller = ANYONE,
    cost: int = 1,
) -> "asyncio.Task[int]":
    return asyncio.create_task(batcher.submit(Job(work, caller, cost)))


def read(
    batcher: ContinuousBatcher[Script, str],
    script: Script,
    caller: Caller = ANYONE,
    cost: int = 1,
) -> Reader:
    return Reader(batcher.open(Job(script, caller, cost)))


async def steps(batcher: ContinuousBatcher[Script, str], engine: FakeEngine, times: int) -> None:
    """Let so many steps of a held engine happen, one after the other, and everything that follows from them."""
    for _ in range(times):
        await step(batcher, engine)


async def step(batcher: ContinuousBatcher[Script, str], engine: FakeEngine) -> None:
    before = batcher.steps
    engine.latch.let_through()
    await until(lambda: batcher.steps > before)
    await settle()


async def in_step(engine: FakeEngine, number: int) -> None:
    """Return when the engine is held inside its step of this number, counted from 1."""
    await until(lambda: engine.latch.arrived == number)
