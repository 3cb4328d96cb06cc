"""Transcripts byte for byte as in golden_transcripts/, and what others make of each: webvtt-py of the subtitles,
OpenAI's SDK of the streams.

Whoever changes one on purpose writes the new bytes into its file, and reads the difference.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import openai
import pytest
import webvtt
from openai import OpenAI
from openai.types.audio import TranscriptionStreamEvent
from starlette.testclient import TestClient

from batching.errors import EngineFailed
from tests.gateway.fakes import FakeTranscription, app, said

GOLDEN = Path(__file__).parent / "golden_transcripts"
AUDIO = ("a.wav", b"RIFF")

TALK = (
    said(" Tom & Jerry say:\n\n- a --> b?\n- <i>No</i>.", 0.0, 1.2345),
    said(" \n"),
    said(" 42", 59.9996, 59.9996, id=1),
    said(" After an hour", 3599.9996, 3661.5, id=2),
    said(" Grüße, 世界", 360_000.25, 360_001.0, id=3),
)


@dataclass(frozen=True)
class Golden:
    handler: Callable[[], FakeTranscription]
    fields: dict[str, str] = field(default_factory=dict)


STREAM = {"stream": "true"}
FILES = {
    "stream.txt": Golden(FakeTranscription, STREAM),
    "logprobs.txt": Golden(lambda: FakeTranscription(said(" Grüß dich")), {**STREAM, "include[]": "logprobs"}),
    "silence.txt": Golden(lambda: FakeTranscription(silent=True), STREAM),
    "languages.txt": Golden(lambda: FakeTranscription(said(" Hi")), {**STREAM, "model": "gpt-transcribe"}),
    "error.txt": Golden(lambda: FakeTranscription(wait_at=1, error=EngineFailed()), STREAM),
    "talk.srt": Golden(lambda: FakeTranscription(*TALK), {"response_format": "srt"}),
    "talk.vtt": Golden(lambda: FakeTranscription(*TALK), {"response_format": "vtt"}),
    "silence.srt": Golden(lambda: FakeTranscription(silent=True), {"response_format": "srt"}),
    "silence.vtt": Golden(lambda: FakeTranscription(silent=True), {"response_format": "vtt"}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_transcript_is_the_golden_one(name: str) -> None:
    golden = FILES[name]
    with TestClient(app(golden.handler())) as client:
        form = {"model": "tiny-whisper", **golden.fields}
        response = client.post("/v1/audio/transcriptions", data=form, files={"file": AUDIO})
    assert response.content == (GOLDEN / name).read_bytes()


def test_every_golden_transcript_is_in_use() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == FILES.keys()


@pytest.mark.parametrize("name", ["talk.srt", "talk.vtt"])
def test_subtitles_are_read_by_another_parser(name: str) -> None:
    text = (GOLDEN / name).read_text()
    subtitles = webvtt.from_buffer(io.StringIO(text), format=name[-3:])
    assert [(cue.start, cue.end) for cue in subtitles.captions] == [
        ("00:00:00.000", "00:00:01.234"),
        ("00:01:00.000", "00:01:00.001"),
        ("01:00:00.000", "01:01:01.500"),
        ("100:00:00.250", "100:00:01.000"),
    ]
    assert [cue.lines[0] for cue in subtitles.captions][1:] == ["42", "After an hour", "Grüße, 世界"]
    assert len(subtitles.captions[0].lines) == 3


def test_vtt_is_valid_to_the_letter() -> None:
    assert len(webvtt.from_string((GOLDEN / "talk.vtt").read_text(), strict=True).captions) == 4
    assert webvtt.from_string((GOLDEN / "silence.vtt").read_text(), strict=True).captions == []


@contextmanager
def events_of(name: str) -> Iterator[Iterator[TranscriptionStreamEvent]]:
    reply = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=(GOLDEN / name).read_bytes())
    transport = httpx2.MockTransport(lambda request: reply)
    with OpenAI(api_key="unused", max_retries=0, http_client=httpx2.Client(transport=transport)) as client:
        yield iter(client.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO, stream=True))


@pytest.mark.parametrize("name", ["stream.txt", "logprobs.txt", "silence.txt", "languages.txt"])
def test_the_deltas_are_the_text_of_the_last_event(name: str) -> None:
    with events_of(name) as events:
        *deltas, done = events
    assert done.type == "transcript.text.done" and done.usage and done.usage.total_tokens == 572
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text


def test_log_probabilities_and_languages_are_read() -> None:
    with events_of("logprobs.txt") as events:
        delta, done = events
    assert delta.type == "transcript.text.delta" and done.type == "transcript.text.done"
    assert delta.logprobs and done.logprobs
    assert [entry.token for entry in delta.logprobs] == [entry.token for entry in done.logprobs] == [" Grüß", " dich"]
    with events_of("languages.txt") as events:
        *_, done = events
    assert done.type == "transcript.text.done"
    assert done.languages and [language.code for language in done.languages] == ["en"]


def test_an_error_in_midstream_is_raised_after_what_came_before() -> None:
    with events_of("error.txt") as events:
        first = next(events)
        with pytest.raises(openai.APIError) as caught:
            next(events)
    assert first.type == "transcript.text.delta"
    assert caught.value.code == "engine_failed"
