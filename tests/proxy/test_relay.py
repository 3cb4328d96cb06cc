"""The relay between a raw-socket upstream and a client driven by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import ClientDisconnect

from proxy.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from proxy.relay import RelayResponse
from proxy.routing import Reason
from proxy.upstream import Upstream
from tests.clock import advance, settle, until
from tests.proxy.asgi_client import AsgiClient
from tests.proxy.chaos_upstream import (
    ChaosUpstream,
    Mode,
    Wire,
    answer,
    chaos_upstream,
    cut_after,
    drip,
    event_stream,
    flood,
    hang,
    refusing_upstream,
    reset_after,
)
from tests.proxy.upstreams import READ_TIMEOUT, connected

SEND_TIMEOUT = 10.0
ERROR_EVENT = b'data: {"error": "cut"}\n\n'

pytestmark = pytest.mark.anyio


def relayed(upstream: Upstream, event: bytes | None = ERROR_EVENT) -> RelayResponse:
    exchange = upstream.send("POST", "/v1/chat/completions", [], b"{}")
    return RelayResponse(exchange, reason=Reason.UNKNOWN_HERE, on_error=lambda exc: event, send_timeout=SEND_TIMEOUT)


@asynccontextmanager
async def behind(mode: Mode) -> AsyncIterator[tuple[ChaosUpstream, RelayResponse]]:
    """A relay in front of such an upstream."""
    async with chaos_upstream(mode) as server, connected(server.url) as upstream:
        yield server, relayed(upstream)


async def test_status_headers_and_body_reach_the_client_as_they_are() -> None:
    mode = answer(429, [(b"Content-Type", b"application/json"), (b"Retry-After", b"3")], b'{"error": {}}')
    client = AsgiClient()
    async with behind(mode) as (_, response):
        await client.call(response)

    assert client.status == 429
    assert client.headers == [
        (b"content-type", b"application/json"),
        (b"retry-after", b"3"),
        (b"content-length", b"13"),
        (b"x-served-by", b"upstream"),
        (b"x-served-because", b"unknown-here"),
    ]
    assert client.body == b'{"error": {}}'
    assert client.finished


async def test_an_empty_reply_is_passed_on() -> None:
    client = AsgiClient()
    async with behind(answer(body=b"")) as (_, response):
        await client.call(response)

    assert (client.status, client.body, client.finished) == (200, b"", True)


async def test_the_connection_of_a_reply_that_was_relayed_to_its_end_is_used_again() -> None:
    async with chaos_upstream(event_stream(b"data: [DONE]\n\n")) as server, connected(server.url) as upstream:
        for _ in range(3):
            await AsgiClient().call(relayed(upstream))

    assert len(server.wires) == 1


async def test_each_chunk_goes_out_before_the_next_one_comes_in() -> None:
    data = b"data: \xc3\xa9\r\n\r\n: ping\n\n"
    tap, client = asyncio.Semaphore(0), AsgiClient()
    async with behind(drip(data, tap)) as (_, response):
        call = asyncio.create_task(client.call(response))
        for count in range(1, len(data) + 1):
            tap.release()
            await until(lambda count=count: len(client.chunks) == count)  # type: ignore[misc]
        await call

    assert client.chunks == [bytes([value]) for value in data]
    assert client.finished


@pytest.mark.parametrize(
    "event",
    [
        b"data: {broken\n\n",
        b"no field at all\n\n",
        b": comment\n\n",
        b"data: \xff\xfe\n\n",
        b"data: " + b"x" * 10_000_000,
    ],
    ids=["bad JSON", "no data", "comment", "bad UTF-8", "10 MB line"],
)
async def test_events_are_not_looked_into(event: bytes) -> None:
    client = AsgiClient()
    async with behind(event_stream(event, b"data: [DONE]\n\n")) as (_, response):
        await client.call(response)

    assert client.body == event + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([b"data: 1\n\n"], b"data: 1\n\n" + ERROR_EVENT),
        ([b"data: 1\r\n\r\n"], b"data: 1\r\n\r\n" + ERROR_EVENT),
        ([b"data: 1\r\r"], b"data: 1\r\r" + ERROR_EVENT),
        ([b"data: 1", b"\n", b"\n"], b"data: 1\n\n" + ERROR_EVENT),
        ([b"data: 1\n\n", b"data: {"], b"data: 1\n\ndata: {\n\n" + ERROR_EVENT),
    ],
)
async def test_an_event_stream_that_is_cut_ends_in_an_error_event_of_its_own(
    sent: list[bytes], received: bytes
) -> None:
    client = AsgiClient()
    async with behind(cut_after(*sent)) as (_, response):
        await client.call(response)

    assert client.body == received
    assert client.finished


async def test_an_event_stream_that_is_reset_ends_in_an_error_event() -> None:
    cut, client = asyncio.Event(), AsgiClient()
    async with behind(reset_after(b"data: 1\n\n", cut)) as (_, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: client.body == b"data: 1\n\n")
        cut.set()
        await until(call.done)
        await call

    assert client.body == b"data: 1\n\n" + ERROR_EVENT


async def test_an_event_stream_that_falls_silent_ends_in_an_error_event() -> None:
    async def one_event(wire: Wire) -> None:
        await cut_after(b"data: 1\n\n", close=False)(wire)
        await hang(wire)

    failures: list[UpstreamError] = []

    def describe(failure: UpstreamError) -> bytes:
        failures.append(failure)
        return ERROR_EVENT

    client = AsgiClient()
    async with chaos_upstream(one_event) as server, connected(server.url) as upstream:
        exchange = upstream.send("POST", "/v1/chat/completions", [])
        response = RelayResponse(exchange, reason=Reason.UNKNOWN_HERE, on_error=describe, send_timeout=SEND_TIMEOUT)
        call = asyncio.create_task(client.call(response))
        await until(lambda: bool(client.chunks))
        await settle()
        await advance(READ_TIMEOUT)
        await until(call.done)
        await call
        await until(lambda: server.open_connections == 0)

    assert [type(failure) for failure in failures] == [UpstreamTimeout]
    assert client.body == b"data: 1\n\n" + ERROR_EVENT


async def test_an_upstream_that_drips_for_ever_is_left_at_the_deadline() -> None:
    tap, client = asyncio.Semaphore(0), AsgiClient()
    async with chaos_upstream(drip(b"data: 1\n\n" * 9, tap)) as server, connected(server.url) as upstream:
        response = RelayResponse(
            upstream.send("POST", "/v1/chat/completions", []),
            reason=Reason.UNKNOWN_HERE,
            on_error=lambda exc: ERROR_EVENT if isinstance(exc, UpstreamTimeout) else None,
            send_timeout=SEND_TIMEOUT,
            deadline=asyncio.get_running_loop().time() + 3 * READ_TIMEOUT,
        )
        call = asyncio.create_task(client.call(response))
        for received in range(1, 4):
            tap.release()
            await until(lambda: len(client.body) >= received)  # noqa: B023  called at once
            await advance(READ_TIMEOUT - 1)
        await advance(3)
        await until(call.done)
        await call
        for _ in range(81):
            tap.release()  # the upstream notices when it writes
        await until(lambda: server.open_connections == 0)

    assert client.body == b"dat\n\n" + ERROR_EVENT


async def test_an_upstream_that_has_not_answered_by_the_deadline_leaves_room_for_a_status() -> None:
    client = AsgiClient()
    async with chaos_upstream(hang) as server, connected(server.url) as upstream:
        exchange = upstream.send("POST", "/v1/chat/completions", [])
        deadline = asyncio.get_running_loop().time() + 5
        response = RelayResponse(
            exchange,
            reason=Reason.UNKNOWN_HERE,
            on_error=lambda exc: None,
            send_timeout=SEND_TIMEOUT,
            deadline=deadline,
        )
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(server.requests) == 1)
        await advance(5)
        with pytest.raises(UpstreamTimeout):
            await call
    assert client.messages == []


@pytest.mark.parametrize(
    ("mode", "event"),
    [
        (cut_after(b"data: 1\n\n"), None),
        (cut_after(b"{", headers=[(b"content-type", b"application/json"), (b"content-length", b"99")]), ERROR_EVENT),
        (cut_after(b"{", headers=[(b"content-type", b"audio/mpeg"), (b"transfer-encoding", b"chunked")]), ERROR_EVENT),
    ],
    ids=["no event to send", "JSON", "audio"],
)
async def test_any_other_reply_that_is_cut_is_left_visibly_unfinished(mode: Mode, event: bytes | None) -> None:
    client = AsgiClient()
    async with chaos_upstream(mode) as server, connected(server.url) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await client.call(relayed(upstream, event))

    assert client.chunks
    assert not client.finished
    assert ERROR_EVENT not in client.body


async def test_an_upstream_that_fails_before_its_first_byte_of_body_leaves_room_for_a_status() -> None:
    client = AsgiClient()
    async with behind(cut_after()) as (_, response):
        with pytest.raises(UpstreamUnreachable):
            await client.call(response)

    assert client.messages == []


async def test_an_upstream_that_refuses_leaves_room_for_a_status() -> None:
    client = AsgiClient()
    with refusing_upstream() as url:
        async with connected(url) as upstream:
            with pytest.raises(UpstreamUnreachable):
                await client.call(relayed(upstream))

    assert client.messages == []


async def test_a_client_that_leaves_before_the_answer_closes_the_upstream() -> None:
    client = AsgiClient()
    async with behind(hang) as (server, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(server.requests) == 1)
        client.gone.set()
        await until(call.done)

        with pytest.raises(ClientDisconnect):
            await call
        await until(lambda: server.open_connections == 0)

    assert client.messages == []


async def test_a_client_that_leaves_in_mid_stream_closes_the_upstream() -> None:
    client = AsgiClient()
    async with behind(flood) as (server, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(client.chunks) > 2)
        client.gone.set()
        await until(call.done)

        with pytest.raises(ClientDisconnect):
            await call
        await until(lambda: server.open_connections == 0)

    assert not client.finished


async def test_a_client_that_leaves_while_a_send_waits_for_it_closes_the_upstream() -> None:
    client = AsgiClient()
    async with behind(flood) as (server, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(client.chunks) > 2)
        client.reading.clear()
        await until(lambda: client.holding_a_send)
        client.gone.set()
        await until(call.done)

        with pytest.raises(ClientDisconnect):
            await call
        await until(lambda: server.open_connections == 0)


async def test_a_client_that_does_not_read_holds_the_upstream_back_and_is_given_up() -> None:
    client = AsgiClient()
    async with behind(flood) as (server, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(client.chunks) > 2)
        client.reading.clear()
        await until(lambda: client.holding_a_send and server.wires[0].held_back)
        await advance(SEND_TIMEOUT)
        await until(call.done)

        with pytest.raises(ClientDisconnect):
            await call
        await until(lambda: server.open_connections == 0)

    assert not client.finished
    assert server.wires[0].sent < 32 * 2**20


async def test_a_server_that_says_by_an_exception_that_the_client_left_closes_the_upstream() -> None:
    class BrokenPipe(AsgiClient):
        async def _send(self, message: object) -> None:
            raise BrokenPipeError

    async with behind(flood) as (server, response):
        with pytest.raises(ClientDisconnect):
            await BrokenPipe().call(response)
        await until(lambda: server.open_connections == 0)


async def test_cancelling_the_call_closes_the_upstream() -> None:
    client = AsgiClient()
    async with behind(hang) as (server, response):
        call = asyncio.create_task(client.call(response))
        await until(lambda: len(server.requests) == 1)
        call.cancel()
        await until(call.done)

        assert call.cancelled()
        await until(lambda: server.open_connections == 0)


async def test_a_response_that_is_never_called_asks_nothing_of_the_upstream() -> None:
    async with chaos_upstream(answer()) as server, connected(server.url) as upstream:
        relayed(upstream)

    assert server.wires == []
