"""One HTTP/1.1 connection to a server, which carries one exchange after another. The parser is llhttp's, by httptools.

aiohttp's client reaches 76 to 80 % of the requests and 62 to 69 % of the streams a second (docs/perf_testing.md).
Whatever arrived in one read comes out as one piece: a stream of small events costs a wake-up a read, not one an event.
"""

import asyncio
from collections.abc import AsyncIterable
from typing import cast

import httptools
import httpx2

RawHeaders = list[tuple[bytes, bytes]]

MAX_HEAD = 64 * 1024  # bytes of a reply that are not body: its head, chunk extensions, trailers
MAX_UNREAD = 256 * 1024  # bytes of body that wait to be taken before the socket is left unread

_BODILESS = frozenset({204, 304})


class Connection(asyncio.Protocol):
    """Made by `loop.create_connection`. `send`, `head` and `piece` are for one task at a time; timeouts are seconds.

    Each of them raises an exception of httpx2: WriteTimeout, ReadTimeout, RemoteProtocolError, ReadError or WriteError.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._writable = True
        self.idle_since = self._loop.time()
        self._reset("GET")

    def _reset(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: RawHeaders = []
        self._status = 0
        self._has_head = False
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._unread = 0
        self._overhead = 0
        self._complete = False
        self._answers_head = method == "HEAD"
        self._bytes_received = 0

    @property
    def reusable(self) -> bool:
        """Whether the last exchange left it in a state in which another can begin."""
        return self._failure is None and self._transport is not None and not self._transport.is_closing()

    @property
    def untouched(self) -> bool:
        """Whether not a byte of a reply has come yet."""
        return not self._bytes_received

    def close(self) -> None:
        """At once; what was not sent yet is not."""
        if self._transport is not None:
            self._transport.abort()

    async def send(self, method: str, head: bytes, body: AsyncIterable[bytes] | bytes, timeout: float) -> None:  # noqa: ASYNC109
        """A whole request. Stops early where the server answers before it has all of it, or does not take it."""
        self._reset(method)
        if isinstance(body, bytes):
            await self._write(head + body, timeout)
            return
        await self._write(head, timeout)
        async for piece in body:
            if self._has_head or self._failure is not None:
                break
            await self._write(piece, timeout)
        else:
            return
        self._failure = self._failure or httpx2.WriteError("the server answered before it had the whole request")

    async def head(self, timeout: float) -> tuple[int, RawHeaders]:  # noqa: ASYNC109 - the names are httpx's
        while not self._has_head:
            self._raise_failure()
            await self._wait(timeout, httpx2.ReadTimeout)
        return self._status, self._headers

    async def piece(self, timeout: float) -> bytes:  # noqa: ASYNC109
        """What has arrived of the body since the last call; empty at its end."""
        while not self._pieces:
            if self._complete:
                return b""
            self._raise_failure()
            await self._wait(timeout, httpx2.ReadTimeout)
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._unread > MAX_UNREAD and self._transport is not None:
            self._transport.resume_reading()
        self._unread = 0
        return piece

    @property
    def complete(self) -> bool:
        """Whether the reply is there to its end, and has been taken."""
        return self._complete and not self._pieces

    async def _write(self, data: bytes, timeout: float) -> None:  # noqa: ASYNC109
        if self._failure is None and self._transport is not None:
            self._transport.write(data)
        while not self._writable and not self._has_head and self._failure is None:
            await self._wait(timeout, httpx2.WriteTimeout)

    async def _wait(self, timeout: float, expired: type[httpx2.TimeoutException]) -> None:  # noqa: ASYNC109
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout, _expire, waiter, expired)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self.close()
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        if self._complete:
            # Nothing was asked for. Whoever gets the next reply must not get this.
            self._fail(httpx2.RemoteProtocolError("more came than was asked for"))
            return
        self._bytes_received += len(data)
        before = self._unread
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(_as_protocol_error(exc))
            return
        if self._unread == before:
            self._overhead += len(data)
            if self._overhead > MAX_HEAD:
                self._fail(httpx2.RemoteProtocolError("too many bytes that are no body"))
                return
        if self._unread > MAX_UNREAD and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        if self._has_head and self._ends_with_connection:
            self._complete = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._failure is None:
            self._failure = (
                httpx2.RemoteProtocolError("the connection was closed") if exc is None else httpx2.ReadError(str(exc))
            )
        self._writable = True
        self._wake()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete and self._failure is None:
            self._failure = httpx2.RemoteProtocolError("more came than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []  # an interim reply; the one that counts follows
            return
        self._status = status
        self._has_head = True
        names = {name.lower() for name, _ in self._headers}
        framed = b"content-length" in names or b"transfer-encoding" in names
        self._ends_with_connection = not framed and status not in _BODILESS
        if self._answers_head:
            self._complete = True
            self._failure = httpx2.ReadError("the parser would wait for a body")

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._pieces.append(data)
        self._unread += len(data)

    def on_message_complete(self) -> None:
        if not self._has_head:
            return
        self._complete = True
        if not self._parser.should_keep_alive() and self._failure is None:
            self._failure = httpx2.ReadError("the server keeps no connections")


def _expire(waiter: asyncio.Future[None], expired: type[httpx2.TimeoutException]) -> None:
    if not waiter.done():
        waiter.set_exception(expired("timed out"))


def _as_protocol_error(exc: Exception) -> httpx2.RemoteProtocolError:
    error = httpx2.RemoteProtocolError(str(exc))
    error.__cause__ = exc
    return error
