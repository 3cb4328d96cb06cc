"""What a relayed request costs: the gateway between this process and an upstream that answers at once.

    python -m tests.perf.proxy
    python -m tests.perf.proxy --upstream-port 8201 --other http://127.0.0.1:8202/v1

The gateway runs in mode `only` with an API key, a rate limit, metrics and its log on. A stream is 52 events. For each
of direct, gateway and, with --other, another proxy in front of the upstream's port: the median and the 99th percentile
of one client, then requests and streams a second of --clients. Then --streams streams at once, with
an event each 20 ms: the longest silence in any. A client here costs about as much as the upstream: where the machine
has two cores, the figures of all three share them.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

KEY = "a-key-for-the-bench"
EVENTS = 52
PACE = 0.02  # seconds between the events of a paced stream

_ANSWER = {"id": "c", "created": 1, "model": "mock"}
_BODY = orjson.dumps(
    {
        **_ANSWER,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello " * 20}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    }
)
_CHUNK = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "hello "}}]}
_EVENT = b"data: " + orjson.dumps({**_ANSWER, **_CHUNK}) + b"\n\n"
_END = b"0\r\n\r\n"


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once; `stream` in the body asks for events, `paced` for slow ones."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    streamed, paced = b'"stream"' in body, b'"paced"' in body
    kind = b"text/event-stream" if streamed else b"application/json"
    length = [] if streamed else [(b"content-length", b"%d" % len(_BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind), *length]})
    for _ in range(EVENTS if streamed else 0):
        if paced:
            await asyncio.sleep(PACE)
        await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if streamed else _BODY})


class Client:
    """One connection, kept alive, that sends one request again and again."""

    def __init__(self, url: str, model: str, *fields: str) -> None:
        self._address = urlsplit(url)
        body = orjson.dumps(
            {"model": model, "messages": [{"role": "user", "content": "hi"}], **dict.fromkeys(fields, True)}
        )
        self._end = _END if fields else b""
        self._request = (
            f"POST {self._address.path}/chat/completions HTTP/1.1\r\nhost: {self._address.netloc}\r\n"
            f"content-type: application/json\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.longest_silence = 0.0

    async def run(self, count: int) -> list[float]:
        """Seconds of each request."""
        reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        try:
            return [await self._exchange(reader, writer) for _ in range(count)]
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        started = time.perf_counter()
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise SystemExit(f"not answered: {head.decode('latin-1')}")
        if self._end:
            await self._read_stream(reader)
        else:
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            await reader.readexactly(int(length.split(b":")[1]))
        return time.perf_counter() - started

    async def _read_stream(self, reader: asyncio.StreamReader) -> None:
        tail, last = b"", time.perf_counter()
        while not tail.endswith(self._end):
            tail = (tail + await reader.read(65_536))[-len(self._end) :]
            now = time.perf_counter()
            self.longest_silence, last = max(self.longest_silence, now - last), now


@contextmanager
def gateway(upstream_url: str) -> Iterator[tuple[str, int]]:
    """Its URL and process id. Prints how long it took to be ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
        "GATEWAY_UPSTREAM_URL": upstream_url,
        "GATEWAY_UPSTREAM_MODE": "only",
        "GATEWAY_API_KEYS": KEY,
        "GATEWAY_RATE_LIMIT": "10000000/minute",
        "GATEWAY_PORT": str(port),
    }
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "gateway", "serve"], env=environ, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/readyz")
            say(f"start {time.perf_counter() - started:.2f} s, resident {_resident(process.pid)} MB")
            yield f"http://127.0.0.1:{port}/v1", process.pid
            say(f"resident after all {_resident(process.pid)} MB")
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def served_upstream(port: int) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", port))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.perf.proxy", "--serve", str(listener.fileno())], pass_fds=[listener.fileno()]
    )
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        _wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        listener.close()


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the figures are this script's output


def _wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"{url} does not answer")


def _resident(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024


async def measure(name: str, url: str, model: str, requests: int, clients: int) -> None:
    await Client(url, model).run(50)
    alone = sorted(await Client(url, model).run(requests))
    rate = await _rate([Client(url, model) for _ in range(clients)], requests // clients)
    streams = await _rate([Client(url, model, "stream") for _ in range(clients)], requests // clients // 2)
    p50, p99 = (alone[len(alone) * share // 100] * 1e3 for share in (50, 99))
    say(
        f"{name:<8}  one client: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        f"   {clients} clients: {rate:.0f} requests/s, {streams:.0f} streams/s"
    )


async def measure_paced(name: str, url: str, model: str, streams: int) -> None:
    clients = [Client(url, model, "stream", "paced") for _ in range(streams)]
    await asyncio.gather(*(client.run(1) for client in clients))
    silences = sorted(client.longest_silence for client in clients)
    say(f"{name:<8}  {streams} streams, an event each 20 ms: longest silence {silences[-1] * 1e3:.0f} ms")


async def _rate(clients: Sequence[Client], each: int) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(client.run(each) for client in clients))
    return len(clients) * each / (time.perf_counter() - started)


async def main(options: argparse.Namespace) -> None:
    with served_upstream(options.upstream_port) as direct:
        say(f"upstream {direct}")
        with gateway(direct) as (through, _):
            others = [("other", options.other)] if options.other else []
            for name, url in (("direct", direct), ("gateway", through), *others):
                await measure(name, url, options.model, options.requests, options.clients)
            for name, url in (("direct", direct), ("gateway", through)):
                await measure_paced(name, url, options.model, options.streams)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--upstream-port", type=int, default=0)
    parser.add_argument("--other", metavar="URL", help="another proxy to measure beside")
    parser.add_argument("--serve", type=int, metavar="FD", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        server = uvicorn.Server(uvicorn.Config(upstream, log_level="warning", access_log=False))
        server.run([socket.socket(fileno=given.serve)])
    else:
        asyncio.run(main(given))
