"""Bodies that are sent as they are made, on a clock that stands still."""

import asyncio

import pytest
from starlette.types import Message

from gateway.body_stream import BodyStream
from gateway.errors import ClientDisconnected
from tests.clock import MANUAL_CLOCK, advance, settle
from tests.gateway.test_sse import Source

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


class Reader:
    """accepts: while it is cleared, no message is taken off the sender's hands."""

    def __init__(self) -> None:
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        await self.accepts.wait()
        self.sent.append(message)


def stream_of(source: Source) -> BodyStream:
    return BodyStream(source.events(), media_type="audio/wav", send_timeout=30.0, headers={"x-voice": "heart"})


async def test_a_body_ends_after_its_last_chunk() -> None:
    source, reader = Source(b"one", b"two"), Reader()
    await stream_of(source)({"type": "http"}, reader.receive, reader.send)
    assert [message.get("body") for message in reader.sent] == [None, b"one", b"two", b""]
    assert (b"content-type", b"audio/wav") in reader.sent[0]["headers"]
    assert [message.get("more_body") for message in reader.sent[1:]] == [True, True, False]
    assert source.closed


async def test_a_body_without_a_chunk_is_an_empty_one() -> None:
    source, reader = Source(), Reader()
    await stream_of(source)({"type": "http"}, reader.receive, reader.send)
    assert [message["type"] for message in reader.sent] == ["http.response.start", *["http.response.body"] * 2]
    assert not any(message.get("body") for message in reader.sent)
    assert reader.sent[-1]["more_body"] is False


async def test_who_does_not_read_for_too_long_is_cut_off() -> None:
    source, reader = Source(b"one", b"two"), Reader()
    reader.accepts.clear()
    sending = asyncio.create_task(stream_of(source)({"type": "http"}, reader.receive, reader.send))
    await settle()
    await advance(29)
    assert not sending.done()
    await advance(2)
    await settle()
    with pytest.raises(ClientDisconnected):
        await sending
    assert source.closed


async def test_a_silent_source_may_take_its_time() -> None:
    source, reader = Source(b"one", silent=True), Reader()
    sending = asyncio.create_task(stream_of(source)({"type": "http"}, reader.receive, reader.send))
    await settle()
    await advance(100)
    assert (reader.sent, sending.done()) == ([], False)
    source.gate.set()
    await settle()
    await sending
    assert reader.sent[-1]["more_body"] is False
