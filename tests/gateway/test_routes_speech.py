"""Speech and voices through the real routes."""

import base64
import gc
from typing import Any

import httpx2
import orjson
import pytest

from batching.errors import EngineFailed
from gateway.errors import ClientDisconnected
from handlers.errors import InvalidRequest
from tests.gateway.fakes import Connection, FakeChat, FakeHandler, FakeSpeech, app

pytestmark = pytest.mark.anyio

SPEAK = {"model": "tiny-tts", "input": "Hello", "voice": "onyx"}


async def send(handler: FakeHandler, method: str, path: str, **options: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path, **options)


def error_of(response: httpx2.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


def events_of(content: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(event.removeprefix(b"data: ")) for event in content.split(b"\n\n") if event]


async def test_speech_is_audio_with_the_voice_that_spoke() -> None:
    handler = FakeSpeech()
    response = await send(handler, "POST", "/v1/audio/speech", json={**SPEAK, "instructions": "cheerful", "speed": 2})
    assert (response.content, response.headers["content-type"]) == (b"ID3audio", "audio/mpeg")
    assert response.headers["x-voice"] == "am_adam???ber"
    assert response.headers["x-ignored-params"] == "instructions"
    assert "x-transliterated" not in response.headers
    assert "content-length" not in response.headers
    [(request, _)] = handler.calls
    assert (request.text, request.voice, request.format, request.speed) == ("Hello", "onyx", "mp3", 2)
    assert (handler.open_syntheses, handler.closed_syntheses) == (0, 1)


async def test_alphabets_that_were_transliterated_are_named() -> None:
    response = await send(FakeSpeech(transliterated=["greek", "cjk"]), "POST", "/v1/audio/speech", json=SPEAK)
    assert response.headers["x-transliterated"] == "cjk,greek"


async def test_speech_may_come_as_events() -> None:
    response = await send(FakeSpeech(), "POST", "/v1/audio/speech", json={**SPEAK, "stream_format": "sse"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-voice"] == "am_adam???ber"
    *deltas, done = events_of(response.content)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == b"ID3audio"
    usage = {"input_tokens": 5, "output_tokens": 30, "total_tokens": 35}
    assert done == {"type": "speech.audio.done", "usage": usage}


async def test_the_first_chunk_is_sent_while_the_next_is_made() -> None:
    handler = FakeSpeech(wait_at=1)
    connection = Connection("/v1/audio/speech", SPEAK)
    await connection.leave_when(handler.waiting, app(handler))
    assert (connection.status, connection.content) == (200, b"ID3")
    assert (handler.open_syntheses, handler.closed_syntheses) == (0, 1)


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_what_fails_before_the_first_chunk_has_a_status(stream_format: str) -> None:
    handler = FakeSpeech(failure=InvalidRequest("cannot be read", "input"), fail_at=0)
    response = await send(handler, "POST", "/v1/audio/speech", json={**SPEAK, "stream_format": stream_format})
    assert error_of(response) == (400, "input")
    assert handler.open_syntheses == 0


@pytest.mark.parametrize("failure", [EngineFailed(), InvalidRequest("cannot be read")])
async def test_what_fails_in_mid_audio_leaves_the_body_without_an_end(failure: Exception) -> None:
    handler = FakeSpeech(failure=failure, fail_at=1)
    connection = Connection("/v1/audio/speech", SPEAK)
    with pytest.raises((EngineFailed, RuntimeError)):
        await app(handler)(connection.scope, connection.receive, connection.send)
    assert connection.content == b"ID3"
    assert connection.sent[-1]["more_body"] is True
    assert handler.open_syntheses == 0


async def test_what_fails_in_mid_audio_is_the_last_event() -> None:
    handler = FakeSpeech(failure=EngineFailed(), fail_at=1)
    response = await send(handler, "POST", "/v1/audio/speech", json={**SPEAK, "stream_format": "sse"})
    first, last = events_of(response.content)
    assert first["type"] == "speech.audio.delta"
    assert last["error"]["code"] == "engine_failed"


async def test_an_unknown_voice_is_refused_by_the_handler() -> None:
    handler = FakeSpeech(error=InvalidRequest("no voice named 'onyx'", "voice"))
    assert error_of(await send(handler, "POST", "/v1/audio/speech", json=SPEAK)) == (400, "voice")


@pytest.mark.parametrize(
    ("voice", "told"),
    [("", "at least 1 character"), ({"id": ""}, "at least 1 character"), ("x" * 257, "at most 256 characters")],
)
async def test_the_name_of_a_voice_is_counted_in_characters(voice: object, told: str) -> None:
    response = await send(FakeSpeech(), "POST", "/v1/audio/speech", json={**SPEAK, "voice": voice})
    assert error_of(response) == (400, "voice")
    assert told in response.json()["error"]["message"]


async def test_an_unknown_stream_format_is_refused() -> None:
    response = await send(FakeSpeech(), "POST", "/v1/audio/speech", json={**SPEAK, "stream_format": "websocket"})
    assert error_of(response) == (400, "stream_format")


async def test_a_client_that_leaves_before_it_is_admitted_cancels_the_speech() -> None:
    handler = FakeSpeech()
    handler.gate.clear()
    connection = Connection("/v1/audio/speech", SPEAK)
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled


async def test_a_client_that_cannot_be_reached_ends_the_synthesis() -> None:
    handler = FakeSpeech()
    connection = Connection("/v1/audio/speech", SPEAK)

    async def broken(message: Any) -> None:
        raise OSError

    with pytest.raises(ClientDisconnected):
        await app(handler)(connection.scope, connection.receive, broken)
    gc.collect()
    assert (handler.open_syntheses, handler.closed_syntheses) == (0, 1)


async def test_voices_are_listed_with_the_local_voice_behind_them() -> None:
    response = await send(FakeSpeech(), "GET", "/v1/audio/voices")
    assert response.json() == {
        "object": "list",
        "data": [
            {"id": "alloy", "object": "audio.voice", "name": "alloy", "model": "tiny-tts", "local_voice": "af_heart"},
            {"id": "onyx", "object": "audio.voice", "name": "onyx", "model": "tiny-tts", "local_voice": "am_adam"},
        ],
    }


async def test_without_a_speech_model_there_are_no_voices() -> None:
    response = await send(FakeChat(), "GET", "/v1/audio/voices")
    assert response.json() == {"object": "list", "data": []}
