"""Event streams, driven message by message on a clock that stands still."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from batching.errors import QueueFull
from gateway.errors import ClientDisconnected
from gateway.sse import DONE, PING, EventStream, frame
from tests.clock import MANUAL_CLOCK, advance, settle
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio

EVENTS = [frame(b'{"n":0}'), frame(b'{"n":1}'), DONE]
SPECS = pytest.mark.parametrize("spec", ["2.3", "2.4"])


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


class Source:
    """Yields the events it is given, and knows whether it was closed.

    gate: while it is cleared, the source is silent.
    """

    def __init__(self, *events: bytes | Exception, silent: bool = False) -> None:
        self._events = events
        self.gate = asyncio.Event()
        if not silent:
            self.gate.set()
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for event in self._events:
                await asyncio.sleep(0)  # as a model does, it gives way before each event
                await self.gate.wait()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True


def stream_of(source: Source, *, keepalive_interval: float = 15.0, send_timeout: float = 30.0) -> EventStream:
    return EventStream(source.events(), keepalive_interval=keepalive_interval, send_timeout=send_timeout)


async def end_of(stream: "asyncio.Task[RawClient]") -> None:
    """Raises what the stream raises; fails, instead of waiting for ever, if it does not end by itself."""
    await settle()
    assert stream.done()
    await stream


@SPECS
async def test_events_arrive_in_order_and_the_reply_ends(spec: str) -> None:
    source = Source(*EVENTS)
    client = await RawClient(spec=spec).call(stream_of(source))
    assert client.chunks == EVENTS
    assert client.complete and source.closed


async def test_the_headers_keep_proxies_from_holding_events_back() -> None:
    client = await RawClient().call(stream_of(Source(*EVENTS)))
    assert client.status == 200
    assert client.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }


async def test_a_route_can_add_headers() -> None:
    stream = EventStream(
        Source(*EVENTS).events(), keepalive_interval=15, send_timeout=30, headers={"x-ignored-params": "user"}
    )
    client = await RawClient().call(stream)
    assert client.headers["x-ignored-params"] == "user"
    assert client.headers["cache-control"] == "no-cache"


async def test_a_stream_without_events_is_a_complete_reply() -> None:
    client = await RawClient().call(stream_of(Source()))
    assert client.status == 200
    assert client.chunks == [] and client.complete


@SPECS
@pytest.mark.parametrize("messages", range(len(EVENTS) + 1))
async def test_a_client_that_leaves_after_any_message_closes_the_source(spec: str, messages: int) -> None:
    client = RawClient(spec=spec, leave_after=messages)
    source = Source(*EVENTS * 5)
    with pytest.raises(ClientDisconnected):
        await client.call(stream_of(source))
    assert source.closed
    assert len(client.sent) == messages


@SPECS
@pytest.mark.parametrize("messages", range(len(EVENTS) + 1))
async def test_a_client_that_leaves_while_a_send_waits_for_it_closes_the_source(spec: str, messages: int) -> None:
    client = RawClient(spec=spec, stall_after=messages)
    source = Source(*EVENTS * 5)
    stream = asyncio.ensure_future(client.call(stream_of(source)))
    await settle()
    client.leave()
    with pytest.raises(ClientDisconnected):
        await end_of(stream)
    assert source.closed
    assert len(client.sent) == messages


async def test_a_source_that_awaits_in_its_cleanup_is_given_the_time() -> None:
    client = RawClient(leave_after=2)
    steps = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield EVENTS[0]
        finally:
            steps.append("closing")
            await asyncio.sleep(0)
            steps.append("closed")

    with pytest.raises(ClientDisconnected):
        await client.call(EventStream(events(), keepalive_interval=15, send_timeout=30))
    assert steps == ["closing", "closed"]


@SPECS
async def test_a_client_that_leaves_while_the_source_is_silent_closes_the_source(spec: str) -> None:
    client = RawClient(spec=spec)
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source)))
    await settle()
    client.leave()
    await settle(turns=8)
    assert source.closed
    with pytest.raises(ClientDisconnected):
        await end_of(stream)


async def test_a_cancelled_request_closes_the_source() -> None:
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(RawClient().call(stream_of(source)))
    await settle()
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(stream)
    assert source.closed


async def test_a_silent_source_is_covered_by_a_ping_every_interval() -> None:
    client = RawClient()
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source, keepalive_interval=15)))
    await settle()
    await advance(14.9)
    assert client.sent == []
    await advance(0.1)
    assert (client.status, client.chunks) == (200, [PING])
    await advance(15)
    assert client.chunks == [PING, PING]
    source.gate.set()
    await end_of(stream)
    assert client.chunks == [PING, PING, *EVENTS]


async def test_a_ping_comes_an_interval_after_the_last_event_not_after_the_last_ping() -> None:
    client = RawClient()
    source = Source(*EVENTS)

    async def slowly() -> AsyncGenerator[bytes, None]:
        async for event in source.events():
            yield event
            await asyncio.sleep(10)

    stream = asyncio.ensure_future(client.call(EventStream(slowly(), keepalive_interval=15, send_timeout=30)))
    await settle()
    for _ in EVENTS:
        await advance(10)
    await end_of(stream)
    assert client.chunks == EVENTS


async def test_a_reader_that_stops_reading_is_cut_after_the_send_timeout() -> None:
    client = RawClient()
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source, keepalive_interval=1000, send_timeout=30)))
    await settle()
    client.reading.clear()
    source.gate.set()
    await settle()
    await advance(29.9)
    assert not stream.done()
    await advance(0.1)
    with pytest.raises(ClientDisconnected):
        await end_of(stream)
    assert source.closed
    assert client.sent == []


async def test_a_ping_that_nobody_reads_cuts_the_stream_too() -> None:
    client = RawClient()
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source, keepalive_interval=15, send_timeout=30)))
    client.reading.clear()
    await advance(0)
    await advance(15)
    await advance(30)
    with pytest.raises(ClientDisconnected):
        await end_of(stream)
    assert source.closed


class SlowHead(RawClient):
    """Takes its time to accept the head, and only the head."""

    def __init__(self) -> None:
        super().__init__()
        self.accept = asyncio.Event()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self.accept.wait()
        await super().send(message)


async def test_the_first_event_waits_for_a_ping_that_is_sending_the_head() -> None:
    client = SlowHead()
    source = Source(*EVENTS, silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source)))
    await settle()
    await advance(15)
    source.gate.set()
    await settle()
    assert client.sent == []
    client.accept.set()
    await end_of(stream)  # the client itself refuses an event before the head
    assert [chunk for chunk in client.chunks if chunk != PING] == EVENTS
    assert client.complete


async def test_no_ping_follows_the_last_message() -> None:
    client = RawClient()
    source = Source(EVENTS[0], silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source)))
    await settle()
    await advance(15)
    client.reading.clear()
    await advance(15)
    source.gate.set()
    await settle()
    client.reading.set()
    await end_of(stream)  # the client itself refuses whatever follows the last message
    await advance(60)
    assert client.complete


async def test_an_error_before_the_first_event_is_left_to_become_a_status() -> None:
    client = RawClient()
    source = Source(QueueFull(4))
    with pytest.raises(QueueFull):
        await client.call(stream_of(source))
    assert client.sent == []
    assert source.closed


async def test_an_error_after_the_first_event_is_the_last_event() -> None:
    source = Source(EVENTS[0], QueueFull(4))
    client = await RawClient().call(stream_of(source))
    message = "The queue is full (4 requests). Retry in 1 s."
    error = (
        f'{{"error":{{"message":"{message}","type":"service_unavailable_error",'
        '"param":null,"code":"server_is_overloaded"}}'
    )
    assert client.chunks == [EVENTS[0], frame(error.encode())]
    assert client.complete and source.closed


async def test_an_error_after_a_ping_is_an_event_too() -> None:
    client = RawClient()
    source = Source(QueueFull(4), silent=True)
    stream = asyncio.ensure_future(client.call(stream_of(source)))
    await settle()
    await advance(15)
    source.gate.set()
    await end_of(stream)
    assert client.chunks[0] == PING
    assert b'"code":"server_is_overloaded"' in client.chunks[1]


async def test_an_unforeseen_error_is_logged_and_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    client = await RawClient().call(stream_of(Source(EVENTS[0], ValueError("the secret"))))
    assert b"server_error" in client.chunks[1] and b"the secret" not in client.chunks[1]
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in records] == [True]


async def test_a_stream_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    await RawClient().call(stream_of(Source(*EVENTS)))
    assert asyncio.all_tasks() == before
    client = RawClient()
    stream = asyncio.ensure_future(client.call(stream_of(Source(*EVENTS, silent=True))))
    await settle()
    client.leave()
    with pytest.raises(ClientDisconnected):
        await end_of(stream)
    assert asyncio.all_tasks() == before
