"""Transcriptions through the real routes."""

from typing import Any

import httpx2
import pytest

from gateway.routes.multipart import MAX_FIELD_BYTES, MAX_FIELDS
from handlers.errors import InvalidRequest, TooLarge
from tests.gateway.fakes import Connection, FakeHandler, FakeTranscription, app

pytestmark = pytest.mark.anyio

WAV = ("speech.wav", b"RIFF....WAVE", "audio/wav")


async def send(handler: FakeHandler, method: str, path: str, **options: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path, **options)


async def transcribe(handler: FakeTranscription, file: Any = WAV, **fields: str) -> httpx2.Response:
    form = {"model": "tiny-whisper", **fields}
    return await send(handler, "POST", "/v1/audio/transcriptions", data=form, files={"file": file} if file else None)


def error_of(response: httpx2.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


async def test_a_transcript_is_json_with_its_duration() -> None:
    handler = FakeTranscription()
    response = await transcribe(handler, language="en", prompt="Kennedy", temperature="0.5")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "text": "And so, my fellow Americans.",
        "usage": {"type": "duration", "seconds": 11.0},
    }
    [(request, _)] = handler.calls
    assert (request.language, request.prompt, request.temperature) == ("en", "Kennedy", 0.5)
    assert handler.files == [b"RIFF....WAVE"]


async def test_a_transcript_as_text_is_plain_and_ends_with_a_newline() -> None:
    response = await transcribe(FakeTranscription("Grüße"), response_format="text", colour="red")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "Grüße\n"
    assert response.headers["x-ignored-params"] == "colour"


async def test_silence_is_an_empty_text() -> None:
    response = await transcribe(FakeTranscription(""))
    assert (response.status_code, response.json()["text"]) == (200, "")


async def test_the_upload_is_whole_and_closed_afterwards_even_when_it_was_too_large_for_memory() -> None:
    handler = FakeTranscription()
    audio = bytes(range(256)) * 8192  # 2 MiB
    assert (await transcribe(handler, ("long.wav", audio))).status_code == 200
    assert handler.files == [audio]
    assert handler.calls[0][0].file.closed


@pytest.mark.parametrize("error", [InvalidRequest("no audio in it", "file"), TooLarge("too long", "file")])
async def test_the_upload_is_closed_when_the_handler_refuses_it(error: InvalidRequest) -> None:
    handler = FakeTranscription(error=error)
    response = await transcribe(handler)
    assert error_of(response) == (413 if isinstance(error, TooLarge) else 400, "file")
    assert handler.calls[0][0].file.closed


async def test_a_client_that_leaves_cancels_the_transcription_and_the_upload_is_closed() -> None:
    handler = FakeTranscription()
    handler.gate.clear()
    connection = Connection("/v1/audio/transcriptions", None)
    head = b'--x\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    connection.send_as(
        b"multipart/form-data; boundary=x",
        head % (b"model", b"", b"tiny-whisper") + head % (b"file", b'; filename="a.wav"', b"RIFF") + b"--x--\r\n",
    )
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled
    assert handler.calls[0][0].file.closed


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "multipart/form-data"),
        (("empty.wav", b""), "is empty"),
        ((None, b"RIFF"), "came as a text field"),
    ],
)
async def test_a_missing_or_empty_file_is_refused(file: Any, message: str) -> None:
    response = await transcribe(FakeTranscription(), file)
    assert message in response.json()["error"]["message"]
    assert error_of(response) == ((415, None) if file is None else (400, "file"))


async def test_a_form_without_a_file_is_refused() -> None:
    files = {"model": (None, b"tiny-whisper")}
    response = await send(FakeTranscription(), "POST", "/v1/audio/transcriptions", files=files)
    assert error_of(response) == (400, "file")


async def test_a_form_without_a_model_is_refused() -> None:
    response = await send(FakeTranscription(), "POST", "/v1/audio/transcriptions", files={"file": WAV})
    assert error_of(response) == (400, "model")


@pytest.mark.parametrize(
    "files",
    [
        [("file", WAV), ("file", WAV)],
        [("file", (None, b"a" * (MAX_FIELD_BYTES + 1)))],
        [("file", WAV), *[(f"field{i}", (None, b"a")) for i in range(MAX_FIELDS + 1)]],
    ],
    ids=["two files", "a file sent as text", "too many fields"],
)
async def test_a_form_out_of_bounds_is_refused_with_the_bounds(files: Any) -> None:
    response = await send(FakeTranscription(), "POST", "/v1/audio/transcriptions", files=files)
    assert response.status_code == 400
    assert "Send one file" in response.json()["error"]["message"]


async def test_a_file_followed_by_a_text_of_the_same_name_is_refused() -> None:
    files = [("model", (None, b"tiny-whisper")), ("file", WAV), ("file", (None, b"text"))]
    response = await send(FakeTranscription(), "POST", "/v1/audio/transcriptions", files=files)
    assert error_of(response) == (400, "file")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
        ("multipart/form-data; boundary=x; charset=utf-16", 415),
        ("multipart/form-data; boundary=x; charset=undefined", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=x", 400),
        ("multipart/form-data; boundary=" + "x" * 5000, 400),
    ],
)
async def test_any_other_content_type_is_refused(content_type: str, status: int) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await send(
        FakeTranscription(), "POST", "/v1/audio/transcriptions", content=b"{\x00\xff", headers=headers
    )
    assert response.status_code == status
    assert "multipart" in response.json()["error"]["message"]
