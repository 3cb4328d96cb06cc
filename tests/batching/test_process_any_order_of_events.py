"""Calls, cancellations, crashes and starts that fail, in any order: every call gets exactly one right answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.errors import ProcessBroken, ProcessDied, ShuttingDown
from batching.messages import LENGTH_BYTES, Head, Part
from batching.process import ProcessWorker
from tests.batching.fakes import thorough
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio

DIED = -9


class FakeChild:
    """A process that does one thing each time the test says so."""

    def __init__(self, host: "Host") -> None:
        self.pid = len(host.children) + 1
        self.killed = False
        self.alive = True
        self.ended = False
        self._host = host
        self._ready = False
        self._call: int | None = None
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Sequence[Part], files: Sequence[int] = ()) -> None:
        if self._ready:
            assert self._call is None, "two calls at a time"
            self._call = Head(bytes(message[0][LENGTH_BYTES:]), 1 << 20).value(())["arguments"][0]
            self._host.made.append(self._call)
        if not self.alive:
            raise BrokenPipeError

    async def receive(self) -> Any:
        message = await self._outbox.get()
        if message is None:
            raise ConnectionResetError
        return message

    def work(self) -> None:
        if not self.alive:
            return
        if not self._ready:
            self._ready = True
            self._outbox.put_nowait({"kind": "value", "value": None})
        elif self._call is not None:
            self._host.done.append(self._call)
            self._outbox.put_nowait({"kind": "value", "value": self._call})
            self._call = None

    def die(self) -> None:
        self.alive = False
        self._outbox.put_nowait(None)

    def kill(self) -> None:
        self.killed = True
        self.die()

    async def end(self, grace: float = 0.0) -> int:
        self.die()
        self.ended = True
        return DIED


class Host:
    """made: the calls that were sent to a process. done: those that it answered."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.made: list[int] = []
        self.done: list[int] = []

    def spawn(self, name: str, limit: int) -> FakeChild:
        assert all(child.ended for child in self.children), "two processes at a time"
        self.children.append(FakeChild(self))
        return self.children[-1]


@dataclass(frozen=True)
class Ask:
    """Somebody comes with a call."""


@dataclass(frozen=True)
class Leave:
    """Who came as number `index` (modulo how many came) leaves."""

    index: int


@dataclass(frozen=True)
class Work:
    """The process does one thing: it gets ready, or answers the call that it runs."""


@dataclass(frozen=True)
class Crash:
    """The process dies."""


@dataclass(frozen=True)
class Pass:
    """So many seconds pass."""

    seconds: float


@dataclass(frozen=True)
class Settle:
    """Everybody who can go on does; without it, what follows happens at the same moment."""


events = st.lists(
    st.just(Ask())
    | st.builds(Leave, st.integers(0, 30))
    | st.just(Work())
    | st.just(Crash())
    | st.builds(Pass, st.sampled_from([0.1, 0.4, 30.0]))
    | st.just(Settle()),
    max_size=40,
)


class Story:
    """What happens, and who is told what."""

    def __init__(self, worker: ProcessWorker, host: Host) -> None:
        self.worker = worker
        self.host = host
        self.callers: list[asyncio.Task[Any]] = []
        self.left: set[int] = set()

    async def happen(self, event: object) -> None:
        match event:
            case Ask():
                number = len(self.callers)
                self.callers.append(asyncio.create_task(self.worker.call("echo", number)))
            case Leave(index) if self.callers:
                number = index % len(self.callers)
                if not self.callers[number].done():
                    self.callers[number].cancel()
                    self.left.add(number)
            case Work():
                self.host.children[-1].work()
            case Crash():
                self.host.children[-1].die()
            case Pass(seconds):
                await advance(seconds)
            case Settle():
                await settle()

    async def end(self) -> None:
        """Nobody comes any more, and nothing dies: after as many turns as there are calls all have an answer."""
        for _ in range(2 * len(self.callers) + 5):
            await advance(10)
            self.host.children[-1].work()
            await settle()

    def check(self) -> None:
        assert self.host.made == sorted(set(self.host.made)), "out of order, or twice"
        for number, caller in enumerate(self.callers):
            assert caller.done()
            if caller.cancelled():
                assert number in self.left
                continue
            match caller.exception():
                case None:
                    assert caller.result() == number
                    assert number in self.host.done
                case ProcessDied():
                    assert number in self.host.made
                case ProcessBroken():
                    assert self.worker.broken
                case error:
                    raise AssertionError(f"{number}: {error!r}")


@settings(thorough, max_examples=100)
@given(happening=events)
async def test_every_call_gets_exactly_one_right_answer(happening: Sequence[object]) -> None:
    host = Host()
    worker = ProcessWorker("model", "a:b", {}, spawn=host.spawn)
    starting = asyncio.create_task(worker.start())
    await settle()
    host.children[0].work()
    await starting
    story = Story(worker, host)
    for event in happening:
        await story.happen(event)
    await settle()
    await story.end()
    story.check()
    await worker.aclose()
    assert all(child.ended for child in host.children)


@settings(thorough, max_examples=100)
@given(happening=events)
async def test_closing_at_any_moment_answers_everybody(happening: Sequence[object]) -> None:
    host = Host()
    worker = ProcessWorker("model", "a:b", {}, spawn=host.spawn)
    starting = asyncio.create_task(worker.start())
    await settle()
    host.children[0].work()
    await starting
    story = Story(worker, host)
    for event in happening:
        await story.happen(event)
    await worker.aclose()
    await settle()
    allowed = (ShuttingDown, ProcessDied, ProcessBroken, type(None))
    assert all(caller.cancelled() or isinstance(caller.exception(), allowed) for caller in story.callers)
    assert all(child.ended for child in host.children)
