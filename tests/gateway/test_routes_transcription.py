"""Transcriptions and translations through the real routes."""

from typing import Any

import httpx2
import orjson
import pytest

from batching.errors import EngineFailed, QueueFull
from gateway.routes.multipart import MAX_FIELD_BYTES, MAX_FIELDS
from gateway.schemas.parameters import TRANSLATION
from gateway.schemas.verdicts import Verdict
from handlers.errors import InvalidRequest, TooLarge
from tests.gateway.fakes import Connection, FakeHandler, FakeTranscription, app, said

pytestmark = pytest.mark.anyio

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
TEXT = "And so, my fellow Americans, ask not what your country can do for you."
TOKENS = {
    "type": "tokens",
    "input_tokens": 553,
    "input_token_details": {"audio_tokens": 550, "text_tokens": 3},
    "output_tokens": 19,
    "total_tokens": 572,
}
SECONDS = '"usage":{"type":"duration","seconds":11.0}}'
WAV = ("speech.wav", b"RIFF....WAVE", "audio/wav")


async def send(handler: FakeHandler, method: str, path: str, **options: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path, **options)


async def transcribe(
    handler: FakeTranscription, file: Any = WAV, path: str = TRANSCRIPTIONS, **fields: str | list[str]
) -> httpx2.Response:
    form = {"model": "tiny-whisper", **fields}
    return await send(handler, "POST", path, data=form, files={"file": file} if file else None)


def error_of(response: httpx2.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


def events_of(body: bytes) -> list[dict[str, Any]]:
    frames = body.decode().removesuffix("\n\n").split("\n\n")
    return [orjson.loads(frame.removeprefix("data: ")) for frame in frames]


def spoken_and_silent() -> list[FakeTranscription]:
    return [FakeTranscription(), FakeTranscription(silent=True)]


def by_hand(path: str = TRANSCRIPTIONS, **fields: str) -> Connection:
    connection = Connection(path, None)
    head = 'content-disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'.format
    parts = [head(name, "", value) for name, value in {"model": "tiny-whisper", **fields}.items()]
    form = "--x\r\n".join(["", *parts, head("file", '; filename="a.wav"', "RIFF")])
    connection.send_as(b"multipart/form-data; boundary=x", f"{form}--x--\r\n".encode())
    return connection


async def test_a_transcript_is_json_with_its_duration() -> None:
    handler = FakeTranscription()
    response = await transcribe(handler, language="en", prompt="Kennedy", temperature="0.5")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"text": TEXT, "usage": {"type": "duration", "seconds": 11.0}}
    [(request, _)] = handler.calls
    assert (request.language, request.prompt, request.temperature) == ("en", "Kennedy", 0.5)
    assert request.task == "transcribe"
    assert handler.files == [b"RIFF....WAVE"]


async def test_under_a_name_of_openai_s_newer_models_usage_is_in_tokens() -> None:
    response = await transcribe(FakeTranscription(), model="gpt-4o-transcribe")
    assert response.json() == {"text": TEXT, "usage": TOKENS}


async def test_under_the_name_of_gpt_transcribe_the_language_is_told() -> None:
    told = [(await transcribe(handler, model="gpt-transcribe")).json()["languages"] for handler in spoken_and_silent()]
    assert told == [[{"code": "en"}], []]


async def test_log_probabilities_come_with_the_json() -> None:
    response = await transcribe(FakeTranscription(said(" Grüß dich")), **{"include[]": "logprobs"})
    assert response.json()["logprobs"] == [
        {"token": " Grüß", "bytes": [32, 71, 114, 195, 188, 195, 159], "logprob": 0.0},
        {"token": " dich", "bytes": [32, 100, 105, 99, 104], "logprob": -0.5},
    ]


async def test_a_verbose_transcript_has_its_segments() -> None:
    response = await transcribe(FakeTranscription(), response_format="verbose_json")
    body = response.json()
    assert list(body) == ["task", "language", "duration", "text", "segments", "usage"]
    assert (body["task"], body["language"], body["duration"], body["text"]) == ("transcribe", "english", 11.0, TEXT)
    assert body["usage"] == {"type": "duration", "seconds": 11.0}
    assert body["segments"][1] == {
        "id": 1,
        "seek": 330,
        "start": 3.3,
        "end": 11.0,
        "text": " ask not what your country can do for you.",
        "tokens": [50364, 50365, 50366, 50367, 50368, 50369, 50370, 50371, 50372],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.5,
        "no_speech_prob": 0.0625,
    }


async def test_words_replace_segments_unless_both_were_asked_for() -> None:
    handler = FakeTranscription()
    forms: list[dict[str, Any]] = [{"timestamp_granularities[]": wanted} for wanted in (["word"], ["word", "segment"])]
    words, both = [(await transcribe(handler, response_format="verbose_json", **form)).json() for form in forms]
    assert "segments" not in words and len(both["segments"]) == 2
    assert words["words"] == both["words"] and len(words["words"]) == 14
    assert words["words"][1] == {"word": "so,", "start": 0.66, "end": 1.32}
    assert all(request.word_timestamps for request, _ in handler.calls)


@pytest.mark.parametrize(
    ("response_format", "body"),
    [
        ("text", "Grüße\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\nGrüße\n\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nGrüße\n\n"),
    ],
)
@pytest.mark.parametrize("path", [TRANSCRIPTIONS, TRANSLATIONS])
async def test_text_and_subtitles_are_plain_text(response_format: str, body: str, path: str) -> None:
    handler = FakeTranscription(said(" Grüße"))
    response = await transcribe(handler, path=path, response_format=response_format, colour="red")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == body
    assert response.headers["x-ignored-params"] == "colour"


@pytest.mark.parametrize(
    ("response_format", "body"),
    [
        ("json", f'{{"text":"",{SECONDS}'),
        ("text", "\n"),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("verbose_json", f'{{"task":"transcribe","language":"","duration":11.0,"text":"","segments":[],{SECONDS}'),
    ],
)
async def test_silence_is_an_empty_text_in_every_format(response_format: str, body: str) -> None:
    response = await transcribe(FakeTranscription(silent=True), response_format=response_format)
    assert (response.status_code, response.text) == (200, body)


async def test_a_translation_is_english_whatever_was_spoken() -> None:
    handler = FakeTranscription()
    response = await transcribe(handler, path=TRANSLATIONS, response_format="verbose_json", prompt="Kennedy")
    body = response.json()
    assert (body["task"], body["language"], body["text"]) == ("translate", "english", TEXT)
    [(request, _)] = handler.calls
    assert (request.task, request.language, request.prompt) == ("translate", None, "Kennedy")


async def test_a_model_that_cannot_translate_says_so() -> None:
    handler = FakeTranscription(translates=False)
    assert error_of(await transcribe(handler, path=TRANSLATIONS)) == (400, "model")
    assert handler.calls[0][0].file.closed


async def test_a_stream_has_a_delta_a_segment_and_the_whole_text_at_its_end() -> None:
    handler = FakeTranscription()
    response = await transcribe(handler, stream="true", colour="red")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-ignored-params"] == "colour"
    assert events_of(response.content) == [
        {"type": "transcript.text.delta", "delta": "And so, my fellow Americans,"},
        {"type": "transcript.text.delta", "delta": " ask not what your country can do for you."},
        {"type": "transcript.text.done", "text": TEXT, "usage": TOKENS},
    ]
    assert (handler.open_transcripts, handler.closed_transcripts) == (0, 1)
    assert handler.calls[0][0].file.closed


async def test_a_stream_of_silence_is_its_end() -> None:
    response = await transcribe(FakeTranscription(silent=True), stream="true", response_format="text")
    [done] = events_of(response.content)
    assert (done["type"], done["text"]) == ("transcript.text.done", "")


async def test_log_probabilities_come_with_each_delta_and_all_at_the_end() -> None:
    handler = FakeTranscription(said(" And"), said("  "), said(" so"))
    response = await transcribe(handler, stream="true", response_format="text", **{"include[]": "logprobs"})
    first, second, done = events_of(response.content)
    assert [entry["token"] for entry in first["logprobs"]] == [" And"]
    assert [entry["token"] for entry in second["logprobs"]] == [" so"]
    assert done["logprobs"] == first["logprobs"] + second["logprobs"]


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("failure", "status"),
    [
        ({"refusal": QueueFull(8, "jobs", 1.0)}, 503),
        ({"refusal": TooLarge("too long", "file")}, 413),
        ({"error": EngineFailed()}, 500),
        ({"error": InvalidRequest("no audio in it", "file")}, 400),
    ],
)
async def test_what_fails_before_the_first_segment_has_its_status(
    fields: dict[str, str], failure: dict[str, Any], status: int
) -> None:
    handler = FakeTranscription(**failure)
    response = await transcribe(handler, **fields)
    assert response.status_code == status
    assert handler.open_transcripts == 0
    assert handler.calls[0][0].file.closed


async def test_a_failure_in_midstream_is_the_last_event() -> None:
    handler = FakeTranscription(wait_at=1, error=EngineFailed())
    response = await transcribe(handler, stream="true")
    first, last = events_of(response.content)
    assert (response.status_code, first["type"]) == (200, "transcript.text.delta")
    assert last["error"]["code"] == "engine_failed"
    assert (handler.open_transcripts, handler.closed_transcripts) == (0, 1)
    assert handler.calls[0][0].file.closed


@pytest.mark.parametrize("wait_at", [0, 1])
async def test_a_client_that_leaves_a_stream_stops_it_and_the_upload_is_closed(wait_at: int) -> None:
    handler = FakeTranscription(wait_at=wait_at)
    handler.gate.clear()
    connection = by_hand(stream="true")
    await connection.leave_when(handler.started, app(handler))
    assert connection.content.count(b"transcript.text.delta") == wait_at
    assert (handler.open_transcripts, handler.closed_transcripts) == (0, 1)
    assert handler.calls[0][0].file.closed


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, TRANSLATIONS])
async def test_a_client_that_leaves_cancels_the_transcription_and_the_upload_is_closed(path: str) -> None:
    handler = FakeTranscription()
    handler.gate.clear()
    connection = by_hand(path)
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled
    assert (handler.open_transcripts, handler.closed_transcripts) == (0, 1)
    assert handler.calls[0][0].file.closed


async def test_a_stream_may_last_until_the_deadline_of_the_request() -> None:
    handler = FakeTranscription()
    for stream in ("true", "false"):
        connection = by_hand(stream=stream)
        connection.scope.update({"gateway.deadline": 60.0, "gateway.reply_deadline": 9.0})
        await app(handler)(connection.scope, connection.receive, connection.send)
    assert [asker.deadline for _, asker in handler.calls] == [60.0, 9.0]


async def test_the_upload_is_whole_and_closed_afterwards_even_when_it_was_too_large_for_memory() -> None:
    handler = FakeTranscription()
    audio = bytes(range(256)) * 8192  # 2 MiB
    assert (await transcribe(handler, ("long.wav", audio))).status_code == 200
    assert handler.files == [audio]
    assert handler.calls[0][0].file.closed


@pytest.mark.parametrize("name", [name for name in TRANSLATION if TRANSLATION[name].verdict is Verdict.REFUSED])
async def test_what_only_transcriptions_take_is_refused_by_name(name: str) -> None:
    response = await transcribe(FakeTranscription(), path=TRANSLATIONS, **{name: "de"})
    assert error_of(response) == (400, name)


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
    response = await send(FakeTranscription(), "POST", TRANSCRIPTIONS, files=files)
    assert error_of(response) == (400, "file")


async def test_a_form_without_a_model_is_refused() -> None:
    response = await send(FakeTranscription(), "POST", TRANSCRIPTIONS, files={"file": WAV})
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
    response = await send(FakeTranscription(), "POST", TRANSCRIPTIONS, files=files)
    assert response.status_code == 400
    assert "Send one file" in response.json()["error"]["message"]


@pytest.mark.parametrize("twice", [[WAV, (None, b"text")], [(None, b"text"), WAV]])
async def test_a_file_beside_a_text_of_the_same_name_is_refused(twice: list[Any]) -> None:
    files = [("model", (None, b"tiny-whisper")), *(("file", file) for file in twice)]
    response = await send(FakeTranscription(), "POST", TRANSCRIPTIONS, files=files)
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
    response = await send(FakeTranscription(), "POST", TRANSCRIPTIONS, content=b"{\x00\xff", headers=headers)
    assert response.status_code == status
    assert "multipart" in response.json()["error"]["message"]
