"""The relay in an application on a real server: what a client sees on its socket."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from proxy.errors import UpstreamUnreachable
from proxy.relay import RelayResponse
from proxy.routing import Reason
from proxy.target import path_of
from proxy.upstream import Upstream
from tests.clock import until
from tests.proxy.chaos_upstream import SSE, Wire, answer, chaos_upstream, cut_after, event_stream, flood
from tests.proxy.upstreams import connected

JSON = (b"content-type", b"application/json")
EVENTS = [b"data: 1\n\n", b"data: \xc3\xa9\n\n", b"data: [DONE]\n\n"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


def relaying(upstream: Upstream) -> Starlette:
    async def relay(request: Request) -> RelayResponse:
        exchange = upstream.send(request.method, path_of(request.scope), request.headers.raw, await request.body())
        return RelayResponse(
            exchange, reason=Reason.UNKNOWN_HERE, on_error=lambda exc: b'data: {"error": {}}\n\n', send_timeout=30.0
        )

    return Starlette(routes=[Route("/v1/{path:path}", relay, methods=["GET", "POST", "DELETE"])])


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.startup(sockets=[listener])
    await server.on_tick(0)  # writes the Date and Server headers, as the main loop does every second
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.force_exit = True  # what a failed test left open is not waited for
        await server.shutdown(sockets=[listener])


@asynccontextmanager
async def gateway(upstream_url: str) -> AsyncIterator[str]:
    """A gateway in front of that upstream, and its own URL."""
    async with connected(upstream_url, api_key="upstream-key") as upstream, serving(relaying(upstream)) as url:
        yield url


async def test_a_proxied_answer_has_every_header_once() -> None:
    mode = answer(201, [JSON, (b"Date", b"yesterday"), (b"Server", b"upstream")], b'{"id": 1}')
    async with chaos_upstream(mode) as server, gateway(server.url) as url, httpx2.AsyncClient() as client:
        reply = await client.post(f"{url}/files", content=b"\x00body", headers={"authorization": "Bearer client-key"})

    names = [name for name, _ in reply.headers.raw]
    assert (reply.status_code, reply.content) == (201, b'{"id": 1}')
    assert sorted(names) == [
        b"content-length",
        b"content-type",
        b"date",
        b"server",
        b"x-served-because",
        b"x-served-by",
    ]
    assert reply.headers["date"] != "yesterday"
    assert server.requests[0].body == b"\x00body"
    assert dict(server.requests[0].headers)[b"authorization"] == b"Bearer upstream-key"


async def test_a_head_request_gets_the_length_of_a_body_that_does_not_come() -> None:
    async def head_only(wire: Wire) -> None:
        await wire.head(200, [JSON, (b"content-length", b"99")])

    async with chaos_upstream(head_only) as server, gateway(server.url) as url, httpx2.AsyncClient() as client:
        reply = await client.head(f"{url}/models")

    assert server.requests[0].line == b"HEAD /v1/models HTTP/1.1"
    assert (reply.headers["content-length"], reply.content) == ("99", b"")


async def test_a_client_can_tell_that_a_reply_which_is_no_event_stream_was_cut() -> None:
    mode = cut_after(b'{"id"', headers=[JSON, SSE[1]])
    async with chaos_upstream(mode) as server, gateway(server.url) as url, httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(f"{url}/models")


async def test_a_client_that_hangs_up_closes_the_upstream() -> None:
    async with chaos_upstream(flood) as server, gateway(server.url) as url, httpx2.AsyncClient() as client:
        async with client.stream("POST", f"{url}/chat/completions") as reply:
            await anext(reply.aiter_raw())
        await until(lambda: server.open_connections == 0)


async def test_two_gateways_in_a_row_give_what_the_last_upstream_gave() -> None:
    async with chaos_upstream(event_stream(*EVENTS)) as server, gateway(server.url) as inner, gateway(inner) as outer:
        async with httpx2.AsyncClient() as client:
            reply = await client.post(f"{outer}/chat/completions", content=b"{}")

    assert reply.content == b"".join(EVENTS)
    assert reply.headers.get_list("x-served-by") == ["upstream"]


async def test_a_failure_before_the_first_byte_can_be_answered_with_a_status_of_our_own() -> None:
    async def bad_gateway(request: Request, exc: Exception) -> Response:
        return Response(str(exc), 502)

    async with chaos_upstream(cut_after()) as server, connected(server.url) as upstream:
        app = Starlette(routes=relaying(upstream).routes, exception_handlers={UpstreamUnreachable: bad_gateway})
        async with serving(app) as url, httpx2.AsyncClient() as client:
            reply = await client.get(f"{url}/models")

    assert (reply.status_code, reply.text) == (502, "the connection to the upstream broke off")
