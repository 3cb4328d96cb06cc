"""One OpenAI-compatible server behind this one, and the pooled client that talks to it."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx2

from proxy import target
from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.headers import RawHeaders, request_headers, response_headers
from proxy.retry import is_repeatable
from proxy.transport import PooledTransport

# Seconds. Shorter than the 5 s after which common servers close an idle connection, so that it is seldom closed
# under a request that is just being sent.
KEEPALIVE = 4.0
WRITE_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A reply whose head has arrived. headers: fit to be passed on.

    chunks: the body as it comes from the wire, content-encoding and all; raises UpstreamUnreachable or UpstreamTimeout.
    """

    status: int
    headers: RawHeaders
    chunks: AsyncGenerator[bytes, None]


class Upstream:
    """Owns a connection pool; close it with `aclose`. Never follows redirects, sends cookies or reads the environment.

    base_url: what stands in for this server's /v1. api_key: sent as a bearer token; None sends no key at all.
    connect_timeout: seconds to a connection, or to a free place in the pool.
    read_timeout: seconds to the head of the reply, and between two pieces of its body.
    max_connections: also the number of requests that can be at the upstream at once.
    Raises ValueError for a `base_url` or an `api_key` that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        connect_timeout: float,
        read_timeout: float,
        max_connections: int,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = target.base_url(base_url)
        self._api_key = _header_safe(api_key)
        self._transport = transport or PooledTransport(
            self._base_url, max_connections=max_connections, keepalive=KEEPALIVE
        )
        self._timeouts = {
            "connect": connect_timeout,
            "read": read_timeout,
            "write": WRITE_TIMEOUT,
            "pool": connect_timeout,
        }

    async def aclose(self) -> None:
        """Close every connection; replies still open break off."""
        await self._transport.aclose()

    @asynccontextmanager
    async def send(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes = b""
    ) -> AsyncIterator[UpstreamReply]:
        """Send a client's request on and wait for the head of the reply, which is closed on leaving the context.

        path: as the client sent it, percent-encoded and with its query (`proxy.target.path_of`).
        Raises UnsafePath, UpstreamUnreachable or UpstreamTimeout.
        """
        request = httpx2.Request(
            method,
            target.join(self._base_url, path),
            headers=request_headers(headers, self._api_key),
            content=body,
            extensions={"timeout": self._timeouts, "repeatable": is_repeatable(method, path)},
        )
        with _upstream_errors():
            # Not through a client: it would keep cookies, follow redirects and log, at the price of half a relay.
            response = await self._transport.handle_async_request(request)
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        async with aclosing(stream):
            _refuse_redirect(response.status_code)
            async with aclosing(_chunks(stream)) as chunks:
                yield UpstreamReply(response.status_code, response_headers(response.headers.raw), chunks)


def _header_safe(api_key: str | None) -> str | None:
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError("the upstream's API key must be printable ASCII without spaces; is there a line break in it?")
    return api_key


async def _chunks(stream: httpx2.AsyncByteStream) -> AsyncGenerator[bytes, None]:
    with _upstream_errors():
        async for chunk in stream:
            yield chunk


def _refuse_redirect(status: int) -> None:
    """A redirect could lead the request, and the key with it, to any host, inside the network or out."""
    if 300 <= status < 400:
        raise UpstreamUnreachable(f"the upstream answered with a redirect ({status}), which is not followed")


@contextmanager
def _upstream_errors() -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as exc:
        raise UpstreamTimeout("the upstream did not answer in time") from exc
    except httpx2.ConnectError as exc:
        raise UpstreamUnreachable("the upstream cannot be reached") from exc
    except httpx2.TransportError as exc:
        raise UpstreamUnreachable("the connection to the upstream broke off") from exc
