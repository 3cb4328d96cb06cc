"""The pool and its HTTP/1.1 connections against servers that say what HTTP allows, and what it does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import httpx2
import pytest

from proxy.connection import MAX_HEAD, MAX_UNREAD
from proxy.retry import RetryBudget
from proxy.transport import PooledTransport
from tests.clock import advance, settle, until
from tests.proxy.chaos_upstream import SSE, Mode, Wire, answer, chaos_upstream, cut_after, event_stream, hang

TIMEOUTS = {"connect": 5.0, "pool": 5.0, "write": 5.0, "first_byte": 5.0, "read": 5.0}

pytestmark = pytest.mark.anyio


def raw(*pieces: bytes, close: bool = False) -> Mode:
    async def mode(wire: Wire) -> None:
        for piece in pieces:
            await wire.write(piece)
            await asyncio.sleep(0)
        if close:
            wire.writer.close()

    return mode


@asynccontextmanager
async def pool(url: str, size: int = 4) -> AsyncIterator[PooledTransport]:
    transport = PooledTransport(httpx2.URL(url), max_connections=size, keepalive=4.0)
    async with aclosing(transport):
        yield transport


async def ask(
    transport: PooledTransport, url: str, method: str = "GET", body: bytes | AsyncIterator[bytes] = b"", **headers: str
) -> tuple[int, bytes]:
    fields = {"host": "x", **{name.replace("_", "-"): value for name, value in headers.items()}}
    stream = httpx2.ByteStream(body) if isinstance(body, bytes) else Pieces(body)
    request = httpx2.Request(
        method, url, headers=fields, stream=stream, extensions={"timeout": TIMEOUTS, "repeats": RetryBudget()}
    )
    response = await transport.handle_async_request(request)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async with aclosing(response.stream) as stream_back:
        return response.status_code, b"".join([piece async for piece in stream_back])


class Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


@pytest.mark.parametrize(
    ("reply", "expected", "kept"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], (200, b"ok"), True),
        ([b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 2\r\n\r\no", b"k"], (200, b"ok"), True),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b""), True),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], (200, b"ok"), True),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"], (204, b""), True),
        (
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nx:y\r\n\r\n"],
            (200, b"ok"),
            True,
        ),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"], (200, b"ok"), False),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], (200, b"ok"), False),
    ],
)
async def test_a_reply_ends_where_its_head_says(reply: Sequence[bytes], expected: object, kept: bool) -> None:
    async with chaos_upstream(raw(*reply)) as server, pool(server.url) as transport:
        assert await ask(transport, server.url) == expected
        assert await ask(transport, server.url) == expected

    assert len(server.wires) == (1 if kept else 2)


async def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    async with chaos_upstream(raw(b"HTTP/1.1 200 OK\r\n\r\n", b"all of it", close=True)) as server:
        async with pool(server.url) as transport:
            assert await ask(transport, server.url) == (200, b"all of it")


async def test_the_reply_to_a_head_request_has_no_body() -> None:
    async with chaos_upstream(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n")) as server:
        async with pool(server.url) as transport:
            assert await ask(transport, server.url, "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * MAX_HEAD,
    ],
    ids=["two framings", "two lengths", "negative", "no number", "upgrade", "HTTP/2", "TLS", "endless trailers"],
)
async def test_what_is_not_plain_http_is_refused(reply: bytes) -> None:
    async with chaos_upstream(raw(reply, close=True)) as server, pool(server.url) as transport:
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(transport, server.url)
        await until(lambda: server.open_connections == 0)


async def test_what_comes_after_a_reply_is_never_taken_for_the_next_one() -> None:
    two = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    async with chaos_upstream(raw(two)) as server, pool(server.url) as transport:
        for _ in range(3):
            assert await ask(transport, server.url) == (200, b"ok")

    assert len(server.wires) == 3


async def test_what_comes_unasked_for_on_an_idle_connection_is_never_taken_for_a_reply() -> None:
    async with chaos_upstream(answer(body=b"ok")) as server, pool(server.url) as transport:
        assert await ask(transport, server.url) == (200, b"ok")
        await server.wires[0].write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await until(lambda: server.open_connections == 0)
        assert await ask(transport, server.url) == (200, b"ok")

    assert len(server.wires) == 2


async def test_events_that_arrive_together_come_as_one_piece() -> None:
    events = [b"data: %d\n\n" % number for number in range(100)]
    joined = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with chaos_upstream(raw(head + joined + b"0\r\n\r\n")) as server, pool(server.url) as transport:
        request = httpx2.Request("GET", server.url, extensions={"timeout": TIMEOUTS})
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        pieces = [piece async for piece in response.stream]
        await response.stream.aclose()

    assert b"".join(pieces) == b"".join(events)
    assert len(pieces) <= 2


async def test_a_body_in_pieces_is_chunked_unless_its_length_is_known() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two"):
            yield piece

    received: list[bytes] = []

    async def read_chunked(wire: Wire) -> None:
        received.append(await wire.reader.readuntil(b"0\r\n\r\n"))
        await answer()(wire)

    async with chaos_upstream(read_chunked) as server, pool(server.url) as transport:
        await ask(transport, server.url, "POST", pieces(), transfer_encoding="chunked")
        server.mode = answer()
        await ask(transport, server.url, "POST", pieces(), content_length="6")

    assert received == [b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"]
    assert server.requests[-1].body == b"onetwo"


async def test_an_upload_stops_where_the_server_has_answered_already() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield bytes(65_536)
            await asyncio.sleep(0)

    async def refuse(wire: Wire) -> None:
        await answer(413, body=b"too large")(wire)
        await hang(wire)

    async with chaos_upstream(refuse) as server, pool(server.url) as transport:
        assert await ask(transport, server.url, "POST", endless(), transfer_encoding="chunked") == (413, b"too large")

    assert sent < 64 * 2**20


async def test_an_upload_waits_for_a_server_that_does_not_read_and_gives_up() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield bytes(65_536)

    async def stuck(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with chaos_upstream(stuck) as server, pool(server.url) as transport:
        request = asyncio.create_task(ask(transport, server.url, "POST", endless(), transfer_encoding="chunked"))
        await until(lambda: sent > MAX_UNREAD)
        before = -1
        while sent != before:
            before = sent
            await settle(200)
        await advance(TIMEOUTS["write"])
        with pytest.raises(httpx2.WriteTimeout):
            await request

    assert sent < 32 * 2**20


async def test_what_is_not_read_is_left_in_the_socket() -> None:
    async def flood(wire: Wire) -> None:
        await cut_after(headers=SSE, close=False)(wire)
        while True:
            await wire.chunk(bytes(65_536))

    async with chaos_upstream(flood) as server, pool(server.url) as transport:
        response = await transport.handle_async_request(
            httpx2.Request("GET", server.url, extensions={"timeout": TIMEOUTS})
        )
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        await until(lambda: server.wires[0].held_back)
        first = await anext(aiter(response.stream))
        await response.stream.aclose()

    assert len(first) <= MAX_UNREAD + 2**20


async def test_who_finds_no_place_waits_for_one_and_gives_up_in_time() -> None:
    async with chaos_upstream(hang) as server, pool(server.url, size=1) as transport:
        first = asyncio.create_task(ask(transport, server.url))
        await until(lambda: len(server.requests) == 1)
        second = asyncio.create_task(ask(transport, server.url))
        await settle()
        server.mode = answer(body=b"ok")
        first.cancel()
        assert await second == (200, b"ok")

    patient = {**TIMEOUTS, "first_byte": 60.0}
    async with chaos_upstream(hang) as server, pool(server.url, size=1) as transport:
        holding = httpx2.Request("GET", server.url, extensions={"timeout": patient})
        holder = asyncio.create_task(transport.handle_async_request(holding))
        await until(lambda: len(server.requests) == 1)
        late = asyncio.create_task(ask(transport, server.url))
        await settle()
        await advance(TIMEOUTS["pool"])
        with pytest.raises(httpx2.PoolTimeout):
            await late
        holder.cancel()
        await asyncio.wait([holder])


async def test_an_idle_connection_is_not_used_after_its_time() -> None:
    async with chaos_upstream(event_stream(b"x")) as server, pool(server.url) as transport:
        await ask(transport, server.url)
        await advance(3.9)
        await ask(transport, server.url)
        await advance(4.1)
        await ask(transport, server.url)

    assert len(server.wires) == 2


async def test_connections_that_a_rush_has_left_are_closed_when_they_are_old() -> None:
    async with chaos_upstream(answer()) as server, pool(server.url) as transport:
        await asyncio.gather(*(ask(transport, server.url) for _ in range(4)))
        for _ in range(5):
            await advance(1.0)
            await ask(transport, server.url)
        await until(lambda: server.open_connections == 1)

    assert len(server.wires) == 4


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\0b"])
async def test_no_header_can_become_two(value: str) -> None:
    async with chaos_upstream(answer()) as server, pool(server.url) as transport:
        with pytest.raises(httpx2.LocalProtocolError):
            await ask(transport, server.url, x=value)

    assert server.wires == []


async def test_certificates_and_names_are_checked() -> None:
    async with pool("https://api.example.com/v1") as transport:
        assert transport._tls is not None
        assert transport._tls.verify_mode is ssl.CERT_REQUIRED
        assert transport._tls.check_hostname
