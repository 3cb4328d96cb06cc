"""httpx2's transport to one server, over connections of our own: a third of the work of the library's default."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from proxy.connection import Connection
from proxy.retry import RetryBudget

MAX_ADDRESSES = 4  # of a host that are tried


class PooledTransport(httpx2.AsyncBaseTransport):
    """Connections to the host of `url`, at most `max_connections`, each kept for `keepalive` idle seconds.

    Requests above that wait for a place, for as long as their `pool` timeout says. Names are looked up in a thread of
    its own, one look-up at a time that all who wait share: a resolver that hangs takes no thread from anybody.
    """

    def __init__(self, url: httpx2.URL, *, max_connections: int, keepalive: float) -> None:
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _tls() if url.scheme == "https" else None
        self._keepalive = keepalive
        self._places = asyncio.Semaphore(max_connections)
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._resolver = ThreadPoolExecutor(1, thread_name_prefix="resolver")
        self._lookup: asyncio.Future[Sequence[str]] | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises the exceptions of httpx2's own transport.

        Extensions: `timeout`, as httpx has it, with `first_byte` beside `read`. `repeats`: a RetryBudget, where it does
        no harm if the server gets it twice. Such a request may find that the server has just closed the idle connection
        which it was sent on, and goes out once more on a new one, at the cost of that budget: whether the server has
        acted on it cannot be known. Any other, and any while the budget is empty, gets a new connection at once.
        """
        head = _head(request)
        await self._take_place(request.extensions["timeout"]["pool"])
        connection: Connection | None = None
        try:
            repeats: RetryBudget | None = request.extensions.get("repeats")
            if repeats is not None and not repeats.empty and (connection := self._idle_connection()):
                try:
                    return await self._exchange(connection, request, head)
                except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                    if not connection.untouched or not isinstance(request.stream, httpx2.ByteStream):
                        raise
                    self._drop(connection)
                    repeats.charge()
            connection = await self._connect(request.extensions["timeout"]["connect"])
            return await self._exchange(connection, request, head)
        except BaseException:
            self._release(connection)
            raise

    async def _exchange(self, connection: Connection, request: httpx2.Request, head: bytes) -> httpx2.Response:
        timeouts = request.extensions["timeout"]
        stream = request.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        body: bytes | AsyncIterable[bytes] = b"".join(stream) if isinstance(stream, httpx2.ByteStream) else stream
        if not isinstance(body, bytes) and "transfer-encoding" in request.headers:
            body = _chunked(body)
        await connection.send(request.method, head, body, timeouts["write"])
        status, headers = await connection.head(timeouts["first_byte"])
        return httpx2.Response(status, headers=headers, stream=_Body(self, connection, timeouts["read"]))

    async def aclose(self) -> None:
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def _take_place(self, timeout: float) -> None:  # noqa: ASYNC109
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(timeout):
                await self._places.acquire()
        except TimeoutError as exc:
            raise httpx2.PoolTimeout("no connection became free") from exc

    def _idle_connection(self) -> Connection | None:
        """The one used last, so that those which are not needed grow old."""
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since >= self._keepalive:
            self._drop(self._idle.popleft())
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            self._drop(connection)
        return None

    def _release(self, connection: Connection | None) -> None:
        self._places.release()
        if connection is None:
            return
        if connection.complete and connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._open.discard(connection)

    async def _connect(self, timeout: float) -> Connection:  # noqa: ASYNC109 - the name is httpx's
        try:
            async with asyncio.timeout(timeout):
                connection = await self._connect_to_any(await self._addresses())
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout("timed out") from exc
        except OSError as exc:
            raise httpx2.ConnectError(str(exc)) from exc
        self._open.add(connection)
        return connection

    async def _connect_to_any(self, addresses: Sequence[str]) -> Connection:
        loop, name = asyncio.get_running_loop(), self._host if self._tls else None
        refusal: OSError | None = None
        for address in addresses[:MAX_ADDRESSES]:
            try:
                _, connection = await loop.create_connection(
                    Connection, address, self._port, ssl=self._tls, server_hostname=name
                )
            except OSError as exc:
                refusal = exc
            else:
                return connection
        raise refusal or OSError("the host has no address")

    async def _addresses(self) -> Sequence[str]:
        """Raises OSError."""
        if self._lookup is None or self._lookup.done():
            loop = asyncio.get_running_loop()
            self._lookup = loop.run_in_executor(self._resolver, _look_up, self._host, self._port)
            self._lookup.add_done_callback(_note_failure)
        return await asyncio.shield(self._lookup)


class _Body(httpx2.AsyncByteStream, AsyncIterator[bytes]):
    def __init__(self, pool: PooledTransport, connection: Connection, timeout: float) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._timeout = timeout

    @property
    def complete(self) -> bool:
        return self._connection is None or self._connection.complete

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = b"" if self._connection is None else await self._connection.piece(self._timeout)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool._release(connection)


async def _chunked(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _look_up(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _note_failure(lookup: asyncio.Future[Sequence[str]]) -> None:
    """All who waited may have gone; asyncio would log that nobody took the exception."""
    if not lookup.cancelled():
        lookup.exception()


def _head(request: httpx2.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [name + b": " + value for name, value in request.headers.raw]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if not head.count(b"\n") == head.count(b"\r") == len(lines) + 1 or b"\0" in head:
        raise httpx2.LocalProtocolError("a header holds a line break")
    return head


def _tls() -> ssl.SSLContext:
    context = httpx2.create_ssl_context(trust_env=False)
    context.set_alpn_protocols(["http/1.1"])
    return context
