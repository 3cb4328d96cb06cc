"""Speech and voices through the real routes."""

from typing import Any

import httpx2
import pytest

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


async def test_speech_is_audio_with_the_voice_that_spoke() -> None:
    handler = FakeSpeech()
    response = await send(handler, "POST", "/v1/audio/speech", json={**SPEAK, "instructions": "cheerful", "speed": 2})
    assert (response.content, response.headers["content-type"]) == (b"ID3audio", "audio/mpeg")
    assert response.headers["x-voice"] == "am_adam???ber"
    assert response.headers["x-ignored-params"] == "instructions"
    [(request, _)] = handler.calls
    assert (request.text, request.voice, request.format, request.speed) == ("Hello", "onyx", "mp3", 2)


async def test_an_unknown_voice_is_refused_by_the_handler() -> None:
    handler = FakeSpeech(error=InvalidRequest("no voice named 'onyx'", "voice"))
    assert error_of(await send(handler, "POST", "/v1/audio/speech", json=SPEAK)) == (400, "voice")


async def test_a_client_that_leaves_cancels_the_speech() -> None:
    handler = FakeSpeech()
    handler.gate.clear()
    connection = Connection("/v1/audio/speech", SPEAK)
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled


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
