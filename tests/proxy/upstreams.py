"""Upstreams as the tests use them."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx2

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
    upstream = Upstream(
        url,
        api_key=api_key,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_connections=max_connections,
        transport=transport,
    )
    async with aclosing(upstream):
        yield upstream
