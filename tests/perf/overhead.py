"""What the gateway itself costs: the whole path with models that answer at once.

    python -m tests.perf.overhead
    python -m tests.perf.overhead --clients 32 --requests 20000

A server process runs the real middleware, routes, registry and batch loops around engines that compute nothing. This
process keeps `--clients` connections busy with it. CPU is the server's own, user and system, over all its threads. A
stream is 64 tokens, each of them a step and an event.
"""

import argparse
import asyncio
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import uvicorn

from batching.batcher import Batcher
from batching.generation import ContinuousBatcher, Joining, StepOutput
from batching.job import Caller, Job
from batching.limits import Limits
from batching.worker import Worker
from gateway.app import create_app
from gateway.settings import Settings
from gateway.telemetry.logging import configure
from handlers.chat.answer import Answer
from handlers.chat.engine import Generated, Prompt
from handlers.chat.generation import ChatGeneration
from handlers.chat.sampling import Choice
from handlers.chat.stops import StopMatcher
from handlers.chat.types import ChatRequest, CompletionRequest, ImageInput
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.spec import ModelSpec, Task
from handlers.stats import ModelStats

REQUESTS: dict[str, dict[str, Any]] = {
    "embeddings": {"model": "instant-embeddings", "input": "hello"},
    "chat/completions": {"model": "instant-chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
}
STREAM_TOKENS = 64
STREAM = {**REQUESTS["chat/completions"], "max_tokens": STREAM_TOKENS, "stream": True}


class InstantEmbeddings:
    """Every text is the same vector."""

    def __init__(self) -> None:
        self.spec = ModelSpec("instant-embeddings", Task.EMBEDDINGS, "dir:/none")
        self._vector = np.ones(4, dtype=np.float32)
        self._batcher: Batcher[str, Any] = Batcher(
            self.spec.id, lambda texts: [self._vector] * len(texts), Limits(), worker=Worker(self.spec.id)
        )
        self.run, self.drain = self._batcher.run, self._batcher.drain

    async def load(self) -> None:
        """Nothing to open."""

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["embeddings"]}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats())

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        vectors = await self._batcher.submit_all([Job(str(text), caller) for text in request.inputs])
        return Embeddings(np.stack(vectors), len(vectors))


class InstantEngine:
    """Every answer is as long as it may be."""

    def __init__(self) -> None:
        self._left: dict[int, int] = {}

    def step(
        self, joining: Sequence[Joining[Prompt, Generated]], leaving: Sequence[int]
    ) -> list[StepOutput[Generated]]:
        for id in leaving:
            self._left.pop(id, None)
        self._left |= {entry.id: entry.prompt.max_tokens for entry in joining}
        return [self._token(id) for id in list(self._left)]

    def reset(self) -> None:
        self._left.clear()

    def _token(self, id: int) -> StepOutput[Generated]:
        self._left[id] -= 1
        if self._left[id]:
            return StepOutput(id, Generated(Choice(1)))
        del self._left[id]
        return StepOutput(id, Generated(Choice(1)), "length")


class OneLetter:
    def feed(self, token: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


class InstantChat:
    def __init__(self) -> None:
        self.spec = ModelSpec("instant-chat", Task.CHAT, "dir:/none")
        self._batcher: ContinuousBatcher[Prompt, Generated] = ContinuousBatcher(
            self.spec.id, InstantEngine(), Limits(), worker=Worker(self.spec.id)
        )
        self.run, self.drain = self._batcher.run, self._batcher.drain

    async def load(self) -> None:
        """Nothing to open."""

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["chat"]}

    def check_images(self, images: Sequence[ImageInput]) -> None:
        """None come."""

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats())

    async def open(self, request: ChatRequest, caller: Caller) -> ChatGeneration:
        detokenizer: Any = OneLetter()
        prompt = Prompt([1], request.max_tokens or 1, request.sampling)
        streams = self._batcher.open_all([Job(prompt, caller)])
        return ChatGeneration(streams, [prompt], [Answer(0, detokenizer, StopMatcher(request.stop))])

    async def complete(self, request: CompletionRequest, caller: Caller) -> ChatGeneration:
        raise NotImplementedError


def serve() -> None:
    """As `gateway serve` does, one log line a request included; the port goes to stdout."""
    configure("info", "text")
    app = create_app(Settings(models="none"), handlers=[InstantEmbeddings(), InstantChat()])
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - read by the other process
        config = uvicorn.Config(app, http="httptools", log_config=None, access_log=False, server_header=False)
        uvicorn.Server(config).run([listener])


async def connection(port: int, request: bytes, count: int, seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"content-length: (\d+)", head)
        await (reader.readexactly(int(length[1])) if length else reader.readuntil(b"\r\n0\r\n\r\n"))
        seconds.append(time.perf_counter() - started)
    writer.close()


def await_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
            return
        time.sleep(0.05)
    raise TimeoutError("the server was not ready after 30 s")


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def measure(pid: int, port: int, name: str, clients: int, requests: int) -> None:
    streamed = name == "stream"
    path, payload = ("chat/completions", STREAM) if streamed else (name, REQUESTS[name])
    body = orjson.dumps(payload)
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    await asyncio.gather(*(connection(port, request, 50, []) for _ in range(clients)))
    seconds: list[float] = []
    cpu, started = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(connection(port, request, requests // clients, seconds) for _ in range(clients)))
    elapsed, cpu = time.perf_counter() - started, cpu_seconds(pid) - cpu
    each, unit = (STREAM_TOKENS, "token") if streamed else (1, "request")
    count = len(seconds) * each
    print(  # noqa: T201 - the figures are this script's output
        f"{name:<17} c={clients:<3} {count / elapsed:6.0f} {unit}s/s  {cpu / count * 1e3:.3f} ms CPU a {unit}  "
        f"p50 {statistics.median(seconds) * 1e3:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16], help="connections kept busy (1 16)")
    parser.add_argument("--requests", type=int, default=8000, help="requests of each kind (8000)")
    parser.add_argument("--serve", action="store_true", help="only serve, on a free port, which is printed")
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    command = [sys.executable, "-m", "tests.perf.overhead", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            await_ready(port)
            for clients in options.clients:
                for name in REQUESTS:
                    asyncio.run(measure(server.pid, port, name, clients, options.requests))
                asyncio.run(measure(server.pid, port, "stream", clients, options.requests // STREAM_TOKENS * 4))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
