"""The client against a raw socket: what really goes over the wire, and what every fault leaves behind."""

import asyncio
import gzip
from contextlib import suppress

import pytest

from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.upstream import Upstream
from tests.clock import advance, settle, until
from tests.proxy.chaos_upstream import (
    SSE,
    Mode,
    Wire,
    answer,
    chaos_upstream,
    cut_after,
    drip,
    endless_headers,
    event_stream,
    hang,
    redirect,
    refusing_upstream,
    reset_after,
)
from tests.proxy.upstreams import READ_TIMEOUT, connected

CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.anyio


async def fetch(upstream: Upstream, method: str = "GET", path: str = "/v1/models", body: bytes = b"") -> bytes:
    headers = [(b"content-length", b"%d" % len(body))] if body else []
    async with upstream.send(method, path, headers, body) as reply:
        return b"".join([chunk async for chunk in reply.chunks])


async def test_body_path_and_query_arrive_byte_for_byte() -> None:
    body = b'{ "model":"m",\r\n "input":"\\u00e9\xc3\xa9"}\x00'
    async with chaos_upstream(answer(body=b"\x00\xff raw")) as server, connected(server.url) as upstream:
        reply = await fetch(upstream, "POST", "/v1/models/org%2Fname?a=%20b&c=d+e", body)

    [received] = server.requests
    assert received.line == b"POST /v1/models/org%2Fname?a=%20b&c=d+e HTTP/1.1"
    assert received.body == body
    assert reply == b"\x00\xff raw"


async def test_a_connection_is_used_again() -> None:
    async with chaos_upstream(answer()) as server, connected(server.url) as upstream:
        for _ in range(3):
            assert await fetch(upstream) == b"{}"

    assert (len(server.requests), len(server.wires)) == (3, 1)


async def test_a_connection_that_the_upstream_closed_while_idle_is_not_used_again() -> None:
    async def answer_once(wire: Wire) -> None:
        await answer()(wire)
        wire.writer.close()

    async with chaos_upstream(answer_once) as server, connected(server.url) as upstream:
        for _ in range(3):
            assert await fetch(upstream) == b"{}"
            await until(lambda: server.open_connections == 0)

    assert len(server.wires) == 3


async def test_a_refused_connection_is_an_unreachable_upstream() -> None:
    with refusing_upstream() as url:
        async with connected(url) as upstream:
            with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                await fetch(upstream)


async def test_an_upstream_that_never_answers_times_out_and_gives_its_connection_back() -> None:
    async with chaos_upstream(hang) as server, connected(server.url, max_connections=1) as upstream:
        for turn in range(2):
            request = asyncio.create_task(fetch(upstream))
            await until(lambda turn=turn: len(server.requests) == turn + 1)  # type: ignore[misc]
            await settle()
            await advance(READ_TIMEOUT)
            await until(request.done)

            with pytest.raises(UpstreamTimeout):
                await request
        await until(lambda: server.open_connections == 0)


async def test_a_stream_that_falls_silent_times_out() -> None:
    tap = asyncio.Semaphore(1)
    async with chaos_upstream(drip(b"ab", tap)) as server, connected(server.url) as upstream:
        async with upstream.send("POST", CHAT, []) as reply:
            assert await anext(reply.chunks) == b"a"
            second = asyncio.create_task(anext(reply.chunks))
            await until(lambda: tap.locked())
            await settle()
            await advance(READ_TIMEOUT)
            await until(second.done)

            with pytest.raises(UpstreamTimeout):
                await second


@pytest.mark.parametrize(
    "mode",
    [
        cut_after(b"data: 1\n\n"),
        cut_after(b"data: 1\n\n", headers=[*SSE[:1], (b"content-length", b"9999")]),
    ],
    ids=["chunked", "by length"],
)
async def test_a_body_cut_short_is_never_taken_for_a_whole_one(mode: Mode) -> None:
    async with chaos_upstream(mode) as server, connected(server.url) as upstream:
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await fetch(upstream)


async def test_a_reset_in_mid_stream_is_told_after_what_came_before_it() -> None:
    cut = asyncio.Event()
    async with chaos_upstream(reset_after(b"data: 1\n\n", cut)) as server, connected(server.url) as upstream:
        async with upstream.send("POST", CHAT, []) as reply:
            assert await anext(reply.chunks) == b"data: 1\n\n"
            cut.set()
            with pytest.raises(UpstreamUnreachable, match="broke off"):
                await anext(reply.chunks)


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"])
async def test_what_is_not_http_is_an_unreachable_upstream(reply: bytes) -> None:
    async def mode(wire: Wire) -> None:
        await wire.write(reply)
        wire.writer.close()

    async with chaos_upstream(mode) as server, connected(server.url) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await fetch(upstream)


async def test_headers_without_end_are_given_up_early() -> None:
    async with chaos_upstream(endless_headers) as server, connected(server.url) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await fetch(upstream)
        await until(lambda: server.open_connections == 0)

    assert server.wires[0].sent < 32 * 2**20


async def test_a_redirect_makes_no_second_connection() -> None:
    async with chaos_upstream(answer()) as elsewhere:
        location = elsewhere.url.encode() + b"/models"
        async with chaos_upstream(redirect(location)) as server, connected(server.url) as upstream:
            with pytest.raises(UpstreamUnreachable, match="redirect"):
                await fetch(upstream)

    assert elsewhere.wires == []


async def test_a_compressed_reply_is_passed_on_without_being_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    packed = answer(headers=[(b"content-encoding", b"gzip")], body=bomb)
    async with chaos_upstream(packed) as server, connected(server.url) as upstream:
        async with upstream.send("GET", "/v1/models", []) as reply:
            body = b"".join([chunk async for chunk in reply.chunks])

    assert (b"content-encoding", b"gzip") in reply.headers
    assert body == bomb


async def test_leaving_the_context_in_mid_stream_closes_the_upstreams_connection() -> None:
    async def endless_wait(wire: Wire) -> None:
        await cut_after(b"data: 1\n\n", close=False)(wire)
        await hang(wire)

    async with chaos_upstream(endless_wait) as server, connected(server.url) as upstream:
        async with upstream.send("POST", CHAT, []) as reply:
            assert await anext(reply.chunks) == b"data: 1\n\n"
        await until(lambda: server.open_connections == 0)


@pytest.mark.parametrize("mode", [answer(), redirect(b"/elsewhere")], ids=["answer", "redirect"])
async def test_a_reply_that_nobody_reads_gives_its_place_back(mode: Mode) -> None:
    async with chaos_upstream(mode) as server, connected(server.url, max_connections=1) as upstream:
        for _ in range(2):
            with suppress(UpstreamUnreachable):
                async with upstream.send("GET", "/v1/models", []):
                    pass
        server.mode = answer(body=b"next")
        assert await fetch(upstream) == b"next"


async def test_cancelling_a_request_that_waits_for_its_answer_closes_the_upstreams_connection() -> None:
    async with chaos_upstream(hang) as server, connected(server.url, max_connections=1) as upstream:
        request = asyncio.create_task(fetch(upstream))
        await until(lambda: len(server.requests) == 1)
        request.cancel()
        await until(request.done)
        await until(lambda: server.open_connections == 0)

        server.mode = answer()
        assert await fetch(upstream) == b"{}"


async def test_the_environment_has_no_say_in_where_requests_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_upstream() as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, url.removesuffix("/v1"))
        async with chaos_upstream(answer()) as server, connected(server.url) as upstream:
            assert await fetch(upstream) == b"{}"


async def test_a_stream_comes_event_by_event() -> None:
    events = [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
    async with chaos_upstream(event_stream(*events)) as server, connected(server.url) as upstream:
        assert await fetch(upstream, "POST", CHAT) == b"".join(events)
