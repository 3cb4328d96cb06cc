"""What the gateway itself costs: the whole path with models that answer at once.

    python -m tests.perf.overhead
    python -m tests.perf.overhead --clients 32 --requests 20000

A server process runs the real middleware, routes, registry and batch loops around engines that compute nothing. This
process keeps `--clients` connections busy with it. CPU is the server's own, user and system, over all its threads.
"""

import argparse
import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
import time
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
from handlers.chat.handler import ChatGeneration
from handlers.chat.stops import StopMatcher
from handlers.chat.types import ChatRequest
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.spec import ModelSpec, Task

REQUESTS = {
    "embeddings": {"model": "instant-embeddings", "input": "hello"},
    "chat/completions": {"model": "instant-chat", "messages": [{"role": "user", "content": "hello"}]},
}


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

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        vectors = await self._batcher.submit_all([Job(str(text), caller) for text in request.inputs])
        return Embeddings(np.stack(vectors), len(vectors))


class InstantEngine:
    """Every answer is one token."""

    def step(self, joining: Sequence[Joining[str, int]], leaving: Sequence[int]) -> list[StepOutput[int]]:
        return [StepOutput(entry.id, 1, "stop") for entry in joining]

    def reset(self) -> None:
        """No rows are kept."""


class OneLetter:
    def feed(self, token: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


class InstantChat:
    def __init__(self) -> None:
        self.spec = ModelSpec("instant-chat", Task.CHAT, "dir:/none")
        self._batcher: ContinuousBatcher[Any, int] = ContinuousBatcher(
            self.spec.id, InstantEngine(), Limits(), worker=Worker(self.spec.id)
        )
        self.run, self.drain = self._batcher.run, self._batcher.drain

    async def load(self) -> None:
        """Nothing to open."""

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["chat"]}

    async def open(self, request: ChatRequest, caller: Caller) -> ChatGeneration:
        detokenizer: Any = OneLetter()
        return ChatGeneration(self._batcher.open(Job("", caller)), 1, detokenizer, StopMatcher(request.stop))


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
        assert length
        await reader.readexactly(int(length[1]))
        seconds.append(time.perf_counter() - started)
    writer.close()


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def measure(pid: int, port: int, path: str, clients: int, requests: int) -> None:
    body = orjson.dumps(REQUESTS[path])
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    await asyncio.gather(*(connection(port, request, 50, []) for _ in range(clients)))
    seconds: list[float] = []
    cpu, started = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(connection(port, request, requests // clients, seconds) for _ in range(clients)))
    elapsed, cpu = time.perf_counter() - started, cpu_seconds(pid) - cpu
    print(  # noqa: T201 - the figures are this script's output
        f"{path:<17} c={clients:<3} {len(seconds) / elapsed:6.0f} req/s  "
        f"{cpu / len(seconds) * 1e3:.3f} ms CPU a request  p50 {statistics.median(seconds) * 1e3:.2f} ms"
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
            for path in REQUESTS:
                for clients in options.clients:
                    asyncio.run(measure(server.pid, port, path, clients, options.requests))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
