"""One OpenAI-compatible server behind this one: how a request reaches it, and what has become of the last ones."""

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import httpx2

from proxy import target
from proxy.body import Content
from proxy.breaker import Breaker
from proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from proxy.headers import RawHeaders, request_headers, response_headers
from proxy.retry import RetryBudget, is_repeatable
from proxy.spec import UpstreamSpec
from proxy.transport import PooledTransport

# Seconds. Shorter than the 5 s after which common servers close an idle connection, so that it is seldom closed
# under a request that is just being sent.
KEEPALIVE = 4.0
WRITE_TIMEOUT = 30.0

_REMEMBERED_PATHS = 256


class Chunks:
    """The body as it comes from the wire, content-encoding and all. Raises UpstreamUnreachable or UpstreamTimeout.

    failure: what it has raised.
    """

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream
        self._pieces = stream.__aiter__()
        self._ended = False
        self._first = b""
        self.failure: UpstreamError | None = None

    @property
    def complete(self) -> bool:
        """Whether it is known that nothing more comes."""
        return not self._first and (self._ended or getattr(self._stream, "complete", False))

    async def peek(self) -> None:
        """Waits for the first piece, which stays to be taken."""
        self._first = await anext(self, b"")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            with _UpstreamErrors():
                return await anext(self._pieces)
        except StopAsyncIteration:
            self._ended = True
            raise
        except UpstreamError as exc:
            self.failure = exc
            raise


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A reply whose head has arrived. headers: fit to be passed on. served_by: the upstream's name.
    due: when all of it must be there, on the event loop's clock."""

    status: int
    headers: RawHeaders
    chunks: Chunks
    served_by: str
    due: float


class Upstream:
    """Owns a connection pool; close it with `aclose`. Never follows redirects, sends cookies or reads the environment.

    breaker: whether it should be asked, for the caller to heed.
    Raises ValueError for a `base_url` or an `api_key` that cannot be used.
    """

    def __init__(self, spec: UpstreamSpec, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.spec = spec
        self.breaker = Breaker()
        base_url = target.base_url(spec.base_url)
        self._api_key = _header_safe(spec.api_key)
        self._host = base_url.netloc
        # Parsing a URL takes as long as all else that is done here, and most requests go to the same few paths.
        self._url = lru_cache(_REMEMBERED_PATHS)(lambda path: target.join(base_url, path))
        self._transport = transport or PooledTransport(
            base_url, max_connections=spec.max_connections, keepalive=KEEPALIVE
        )
        self._timeouts = {
            "connect": spec.connect_timeout,
            "pool": spec.connect_timeout,
            "write": WRITE_TIMEOUT,
            "first_byte": min(spec.first_byte_timeout, spec.total_timeout),
            "read": spec.idle_timeout,
        }

    async def aclose(self) -> None:
        """Close every connection; replies still open break off."""
        await self._transport.aclose()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: Content = b"",
        budget: RetryBudget | None = None,
    ) -> AsyncIterator[UpstreamReply]:
        """Send a client's request on and wait for the head of the reply, which is closed on leaving the context.

        path: as the client sent it, percent-encoded and with its query (`proxy.target.path_of`).
        budget: what a repeat costs that a stale connection makes necessary; None is one of its own.
        Raises UnsafePath, UpstreamUnreachable or UpstreamTimeout, and what a body raises that is read piece by piece.
        """
        request = self._request(method, path, headers, body)
        if is_repeatable(method, path):
            request.extensions["repeats"] = budget or RetryBudget()
        due = asyncio.get_running_loop().time() + self.spec.total_timeout
        with _UpstreamErrors():
            # Not through a client: it would keep cookies, follow redirects and log, at the price of half a relay.
            response = await self._transport.handle_async_request(request)
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        async with aclosing(stream):
            _refuse_redirect(response.status_code)
            yield UpstreamReply(
                response.status_code, response_headers(response.headers.raw), Chunks(stream), self.spec.name, due
            )

    def _request(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: Content) -> httpx2.Request:
        kept = request_headers(headers, self._api_key, keep_credentials=self.spec.forward_client_key)
        framed = _framed(method, kept, body)
        return httpx2.Request(
            method,
            self._url(path),
            headers=[(b"host", self._host), *framed],
            stream=httpx2.ByteStream(body) if isinstance(body, bytes) else _Stream(body),
            extensions={"timeout": self._timeouts},
        )


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._pieces)


def _framed(method: str, headers: RawHeaders, body: Content) -> RawHeaders:
    """With the one header that says where the body ends."""
    if isinstance(body, bytes):
        headers = [pair for pair in headers if pair[0] != b"content-length"]
        if body or method in ("POST", "PUT", "PATCH"):
            headers.append((b"content-length", b"%d" % len(body)))
    elif not any(name == b"content-length" for name, _ in headers):
        headers.append((b"transfer-encoding", b"chunked"))
    return headers


def _header_safe(api_key: str | None) -> str | None:
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError("the upstream's API key must be printable ASCII without spaces; is there a line break in it?")
    return api_key


def _refuse_redirect(status: int) -> None:
    """A redirect could lead the request, and the key with it, to any host, inside the network or out."""
    if 300 <= status < 400:
        raise UpstreamUnreachable(f"the upstream answered with a redirect ({status}), which is not followed")


class _UpstreamErrors:
    """Turns httpx2's exceptions into ours. A class, as it is entered for every piece of a stream."""

    def __enter__(self) -> None:
        """Nothing to open."""

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        match exc:
            case httpx2.TimeoutException():
                connecting = isinstance(exc, httpx2.ConnectTimeout | httpx2.PoolTimeout)
                raise UpstreamTimeout("the upstream did not answer in time", sent=not connecting) from exc
            case httpx2.ConnectError():
                raise UpstreamUnreachable("the upstream cannot be reached", sent=False) from exc
            case httpx2.TransportError():
                raise UpstreamUnreachable("the connection to the upstream broke off") from exc
