"""Upstreams as the tests use them."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx2

from proxy.spec import UpstreamSpec
from proxy.upstream import Upstream

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0


@asynccontextmanager
async def connected(
    url: str,
    *,
    api_key: str | None = None,
    max_connections: int = 4,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncIterator[Upstream]:
    spec = UpstreamSpec(
        url,
        api_key=api_key,
        connect_timeout=CONNECT_TIMEOUT,
        first_byte_timeout=READ_TIMEOUT,
        idle_timeout=READ_TIMEOUT,
        max_connections=max_connections,
    )
    upstream = Upstream(spec, transport=transport)
    async with aclosing(upstream):
        yield upstream
