"""chaosup: an upstream made of one raw loopback socket, which does what no well-behaved server would.

    async with chaos_upstream(event_stream(b"data: 1\\n\\n")) as upstream: ...   # upstream.url, upstream.requests

A mode is a coroutine function that gets the `Wire` after each request has been read and writes whatever it likes to it.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

Header = tuple[bytes, bytes]
SSE: Sequence[Header] = ((b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked"))


@dataclass(frozen=True)
class Received:
    """One request exactly as it came over the wire."""

    line: bytes
    headers: list[Header]
    body: bytes


@dataclass
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)

    async def head(self, status: int, headers: Sequence[Header]) -> None:
        lines = [b"HTTP/1.1 %d Any Reason" % status, *(name + b": " + value for name, value in headers)]
        await self.write(b"\r\n".join(lines) + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    @property
    def held_back(self) -> bool:
        """Whether the other side takes so little that writing has to wait."""
        transport = self.writer.transport
        return transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]

    async def peer_leaves(self) -> None:
        while await self.reader.read(65_536):
            pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Mode = Callable[[Wire], Awaitable[None]]


@dataclass
class ChaosUpstream:
    mode: Mode
    url: str = ""
    requests: list[Received] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    open_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        self.open_connections += 1
        try:
            # Cancelled when its test ends; Python 3.11 logs a traceback for a connection handler that says so.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    self.requests.append(await _receive(reader))
                    await self.mode(wire)
        finally:
            self.open_connections -= 1
            writer.close()


@asynccontextmanager
async def chaos_upstream(mode: Mode) -> AsyncIterator[ChaosUpstream]:
    upstream = ChaosUpstream(mode)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield upstream


@contextmanager
def refusing_upstream() -> Iterator[str]:
    """The URL of a port that is taken but does not listen, so that nobody else can answer there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


async def _receive(reader: asyncio.StreamReader) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *fields = head[:-4].split(b"\r\n")
    headers = [(name.lower(), value) for name, _, value in (field.partition(b": ") for field in fields)]
    return Received(line, headers, await reader.readexactly(int(dict(headers).get(b"content-length", b"0"))))


def answer(status: int = 200, headers: Sequence[Header] = (), body: bytes = b"{}") -> Mode:
    async def mode(wire: Wire) -> None:
        await wire.head(status, [*headers, (b"content-length", b"%d" % len(body))])
        await wire.write(body)

    return mode


def event_stream(*events: bytes) -> Mode:
    async def mode(wire: Wire) -> None:
        await cut_after(*events, close=False)(wire)
        await wire.chunk(b"")

    return mode


def cut_after(*events: bytes, headers: Sequence[Header] = SSE, close: bool = True) -> Mode:
    """Chunks without the end of the body."""

    async def mode(wire: Wire) -> None:
        await wire.head(200, headers)
        for event in events:
            await wire.chunk(event)
        if close:
            wire.writer.close()

    return mode


def reset_after(event: bytes, cut: asyncio.Event) -> Mode:
    """One event, then, when `cut` is set, RST."""

    async def mode(wire: Wire) -> None:
        await cut_after(event, close=False)(wire)
        await cut.wait()
        wire.reset()

    return mode


def drip(data: bytes, tap: asyncio.Semaphore) -> Mode:
    """A stream of single bytes, each let go by a release of `tap`."""

    async def mode(wire: Wire) -> None:
        await wire.head(200, SSE)
        for value in data:
            await tap.acquire()
            await wire.chunk(bytes([value]))
        await wire.chunk(b"")

    return mode


async def hang(wire: Wire) -> None:
    """Takes the request and never answers."""
    await wire.peer_leaves()
    wire.writer.close()


async def flood(wire: Wire) -> None:
    """A body without end, as fast as the other side takes it."""
    await wire.head(200, SSE)
    while True:
        await wire.chunk(b"x" * 65_536)


async def endless_headers(wire: Wire) -> None:
    await wire.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await wire.write(b"x-more: " + b"x" * 8_192 + b"\r\n")


def redirect(location: bytes, status: int = 302) -> Mode:
    return answer(status, [(b"location", location)], b"")
