"""A client that leaves frees its place in the batch: real sockets, real batcher, an engine that counts its steps."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pytest

from batching.generation import ContinuousBatcher, Joining, StepOutput
from batching.job import Caller, Job
from batching.limits import Limits
from batching.worker import Worker
from handlers.chat.answer import Answer
from handlers.chat.engine import Generated, Prompt
from handlers.chat.generation import ChatGeneration
from handlers.chat.sampling import Choice
from handlers.chat.stops import StopMatcher
from handlers.chat.types import ChatRequest, CompletionRequest, ImageInput
from handlers.spec import ModelSpec, Task
from handlers.stats import ModelStats
from tests.batching.fakes import Latch
from tests.clients.live import fake_server


class LatchedEngine:
    """Every step waits for the latch; `rows` is who was in each."""

    def __init__(self) -> None:
        self.latch = Latch(closed=True)
        self.rows: list[list[int]] = []
        self._live: list[int] = []

    def step(
        self, joining: Sequence[Joining[Prompt, Generated]], leaving: Sequence[int]
    ) -> list[StepOutput[Generated]]:
        self._live = [row for row in self._live if row not in leaving] + [entry.id for entry in joining]
        self.rows.append(list(self._live))
        self.latch.wait()
        return [StepOutput(row, token=Generated(Choice(1))) for row in self._live]

    def reset(self) -> None:
        self._live = []


class LetterDetokenizer:
    def feed(self, token: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


class LatchedChat:
    """A chat handler whose engine never ends an answer by itself."""

    def __init__(self) -> None:
        self.spec = ModelSpec("latched", Task.CHAT, "dir:/none")
        self.engine = LatchedEngine()
        self.batcher: ContinuousBatcher[Prompt, Generated] = ContinuousBatcher(
            "latched", self.engine, Limits(max_batch_size=4), worker=Worker("latched")
        )

    @property
    def admitted(self) -> int:
        return self.batcher.running + self.batcher.waiting

    async def load(self) -> None:
        """Nothing to open."""

    async def run(self) -> None:
        await self.batcher.run()

    async def drain(self) -> None:
        await self.batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["chat"]}

    def check_images(self, images: Sequence[ImageInput]) -> None:
        """None come."""

    def stats(self) -> ModelStats:
        return ModelStats(self.batcher.stats())

    async def open(self, request: ChatRequest, caller: Caller) -> ChatGeneration:
        prompt = Prompt([1], 1_000_000, request.sampling)
        streams = self.batcher.open_all([Job(prompt, caller) for _ in range(request.n)])
        detokenizer: Any = LetterDetokenizer()
        return ChatGeneration(streams, [prompt], [Answer(i, detokenizer, StopMatcher(())) for i in range(request.n)])

    async def complete(self, request: CompletionRequest, caller: Caller) -> ChatGeneration:
        raise NotImplementedError


def connect(url: str, *, stream: bool) -> socket.socket:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = orjson.dumps({"model": "latched", "messages": [{"role": "user", "content": "x"}], "stream": stream})
    client = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def wait_for(condition: Callable[[], bool]) -> None:
    """Gives way to the server's thread until the condition holds. What never happens ends with the whole run."""
    while not condition():
        os.sched_yield()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "non-stream"])
def test_a_client_that_leaves_while_it_generates_costs_at_most_two_more_steps(stream: bool) -> None:
    chat = LatchedChat()
    engine = chat.engine
    with fake_server([chat]) as url:
        staying, leaving = connect(url, stream=False), connect(url, stream=stream)
        wait_for(lambda: chat.admitted == 2)
        engine.latch.let_through(3)
        wait_for(lambda: engine.latch.arrived >= 4 and chat.batcher.running == 2)
        leaving.close()
        wait_for(lambda: chat.batcher.running == 1)
        steps_before = len(engine.rows)
        engine.latch.let_through(2)
        wait_for(lambda: len(engine.rows) >= steps_before + 2)
        assert [len(rows) for rows in engine.rows[steps_before:]] == [1, 1]
        staying.close()
        wait_for(lambda: chat.batcher.running == 0)
        engine.latch.open()
        wait_for(lambda: engine.rows[-1] == [])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "non-stream"])
def test_a_client_that_leaves_while_it_waits_never_enters_a_batch(stream: bool) -> None:
    chat = LatchedChat()
    with fake_server([chat]) as url:
        running = [connect(url, stream=False) for _ in range(4)]
        wait_for(lambda: chat.admitted == 4)
        chat.engine.latch.let_through(1)
        wait_for(lambda: chat.batcher.running == 4)
        waiting = connect(url, stream=stream)
        wait_for(lambda: chat.batcher.waiting == 1)
        waiting.close()
        wait_for(lambda: chat.batcher.waiting == 0)
        for client in running:
            client.close()
        wait_for(lambda: chat.batcher.running == 0)
        chat.engine.latch.open()
        wait_for(lambda: chat.engine.rows[-1] == [])
    assert max(row for rows in chat.engine.rows for row in rows) == 3
