"""The openai package, unmodified, has recordings transcribed by the starter model: whole, streamed, and left alone."""

import io
import os
import signal
import sys
from itertools import pairwise
from typing import Any, Literal, get_args

import httpx2
import numpy as np
import openai
import pytest
import webvtt
from openai import OpenAI
from openai.types.audio import TranscriptionVerbose

from handlers.audio.decode import SAMPLE_RATE
from handlers.audio.waveform import Waveform
from handlers.starter import TRANSCRIPTION
from tests.clients.live import LiveServer
from tests.handlers.audio_files import encoded
from tests.processes import children, watched

pytestmark = pytest.mark.models

Upload = tuple[str, bytes]
Subtitles = Literal["srt", "vtt"]

MODEL = TRANSCRIPTION.id
OPENING = "It was the best of times, it was the worst of times."

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and waits for processes of others")
# The package calls `translations.create` deprecated, with no word on what is to take its place.
translates = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


def upload(waveform: Waveform) -> Upload:
    return "speech.wav", encoded("wav", waveform)


@pytest.fixture(scope="module")
def opening(two_cities: Waveform) -> Upload:
    """One sentence."""
    return upload(two_cities[: 5 * SAMPLE_RATE])


@pytest.fixture(scope="module")
def reading(two_cities: Waveform) -> Upload:
    """Somewhat more than a window."""
    return upload(two_cities[: 35 * SAMPLE_RATE])


def without_spaces(text: str) -> str:
    return "".join(text.split())


def test_words_go_forward_lie_inside_their_segments_and_are_the_text(client: OpenAI, reading: Upload) -> None:
    heard = client.audio.transcriptions.create(
        model="whisper-1", file=reading, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    words, segments = heard.words or [], heard.segments or []
    assert len({segment.seek for segment in segments}) == 2, "of both windows"
    assert heard.text.startswith(OPENING)
    assert all(word.start <= word.end <= heard.duration for word in words)
    assert all(one.end <= other.start for one, other in pairwise(words))
    assert "".join(segment.text for segment in segments).strip() == heard.text
    assert without_spaces("".join(word.word for word in words)) == without_spaces(heard.text)
    for segment in segments:
        inside = [word.word for word in words if segment.start <= word.start and word.end <= segment.end]
        assert without_spaces("".join(inside)) == without_spaces(segment.text)


def seconds(time: str) -> float:
    hours, minutes, rest = time.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_subtitles_have_the_times_and_texts_of_the_segments(client: OpenAI, two_cities: Waveform) -> None:
    file = upload(two_cities[: 9 * SAMPLE_RATE])
    create = client.audio.transcriptions.create
    verbose = create(model="whisper-1", file=file, response_format="verbose_json")
    expected = [(segment.text.strip(), segment.start, segment.end) for segment in verbose.segments or []]
    assert len(expected) >= 2
    for form in get_args(Subtitles):
        answer: str = create(model="whisper-1", file=file, response_format=form)
        cues = webvtt.from_buffer(io.StringIO(answer), format=form).captions
        assert [(cue.text, seconds(cue.start), seconds(cue.end)) for cue in cues] == expected
    webvtt.from_string(answer, strict=True)


def test_a_stream_says_in_pieces_what_is_said_in_one(client: OpenAI, reading: Upload) -> None:
    whole = client.audio.transcriptions.create(model="whisper-1", file=reading)
    *events, done = client.audio.transcriptions.create(model="whisper-1", file=reading, stream=True)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) == len(events) > 2
    assert done.type == "transcript.text.done"
    assert "".join(deltas) == done.text == whole.text


def test_log_probabilities_are_those_of_the_text_whole_and_streamed(client: OpenAI, opening: Upload) -> None:
    options: dict[str, Any] = {"model": "gpt-4o-transcribe", "file": opening, "include": ["logprobs"]}
    whole = client.audio.transcriptions.create(**options)
    *_, done = client.audio.transcriptions.create(**options, stream=True)
    assert "".join(entry.token or "" for entry in whole.logprobs or []).strip() == whole.text == OPENING
    assert all(entry.logprob is not None and -10 < entry.logprob <= 0 for entry in whole.logprobs or [])
    streamed, at_once = ([entry.to_dict() for entry in answer.logprobs] for answer in (done, whole))
    assert (done.text, streamed) == (whole.text, at_once)


@translates
def test_an_english_only_model_refuses_to_translate(client: OpenAI, opening: Upload) -> None:
    with pytest.raises(openai.BadRequestError, match="only transcribes. Translate with a multilingual") as refused:
        client.audio.translations.create(model="whisper-1", file=opening)
    assert (refused.value.param, refused.value.code) == ("model", "unsupported_value")


def test_a_list_is_read_in_every_spelling(base_url: str, opening: Upload) -> None:
    answers = [
        httpx2.post(
            f"{base_url}/audio/transcriptions",
            data={"model": "whisper-1", **spelling},
            files={"file": opening},
            timeout=60,
        )
        .raise_for_status()
        .json()
        for spelling in ({"include[]": "logprobs"}, {"include": "logprobs"}, {"include": '["logprobs"]'})
    ]
    assert answers[0]["text"] == OPENING and answers[0]["logprobs"]
    assert answers == [answers[0]] * 3


@pytest.mark.parametrize(
    ("response_format", "body"), [("json", None), ("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n")]
)
def test_silence_is_an_empty_text(client: OpenAI, response_format: Any, body: str | None) -> None:
    silence = upload(np.zeros(3 * SAMPLE_RATE, np.float32))
    answer = client.audio.transcriptions.create(model="whisper-1", file=silence, response_format=response_format)
    assert (answer if isinstance(answer, str) else answer.text) == (body or "")


def test_silence_has_a_duration_no_segments_no_words_and_no_deltas(client: OpenAI) -> None:
    silence = upload(np.zeros(3 * SAMPLE_RATE, np.float32))
    create = client.audio.transcriptions.create
    verbose = create(
        model="whisper-1", file=silence, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert isinstance(verbose, TranscriptionVerbose)
    assert (verbose.text, verbose.duration, verbose.segments, verbose.words) == ("", 3, [], [])
    [done] = create(model="whisper-1", file=silence, stream=True)
    assert done.type == "transcript.text.done" and done.text == ""


# --- who leaves, and an engine that hangs


def is_idle(server: LiveServer) -> bool:
    """No request but the question itself, nothing that runs, and no audio that waits."""
    return server.metric("gateway_http_requests_in_flight") == 1 and not any(
        server.metric(name, model=MODEL)
        for name in ("gateway_running_jobs", "gateway_queue_jobs", "gateway_queue_cost")
    )


@on_linux
def test_who_leaves_a_stream_in_mid_file_ends_the_computation_and_the_next_is_answered(
    server: LiveServer, client: OpenAI, two_cities: Waveform, opening: Upload
) -> None:
    """The first delta comes, and the computation ends, long before the last window is transcribed."""
    processes, before = children(server.pid), server.completed(MODEL)
    long = np.tile(two_cities, 4)
    windows = len(long) // (30 * SAMPLE_RATE)
    with watched(processes[MODEL]) as ended:
        stream = client.audio.transcriptions.create(model="whisper-1", file=upload(long), stream=True)
        assert next(iter(stream)).type == "transcript.text.delta"
        assert 1 <= server.completed(MODEL) - before < windows
        stream.close()
        assert ended(60)
    assert client.audio.transcriptions.create(model="whisper-1", file=opening).text == OPENING
    server.wait_for(lambda: is_idle(server))
    assert server.completed(MODEL) - before < windows + 1
    now = children(server.pid)
    assert now.keys() == processes.keys() and now[MODEL] != processes[MODEL]


@on_linux
def test_an_engine_that_hangs_is_ended_at_the_deadline_and_the_next_is_answered(
    server: LiveServer, client: OpenAI, opening: Upload
) -> None:
    pid = children(server.pid)[MODEL]
    os.kill(pid, signal.SIGSTOP)
    with watched(pid) as ended:
        for timeout in (0.5, 1, 2, 4, 8, 16):  # on a busy machine the file may not reach the engine in time
            with pytest.raises(openai.InternalServerError) as late:
                client.audio.transcriptions.create(
                    model="whisper-1", file=opening, extra_headers={"x-request-timeout": str(timeout)}
                )
            assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
            if ended(timeout):
                break
        else:
            pytest.fail("the engine was never ended")
    assert client.audio.transcriptions.create(model="whisper-1", file=opening).text == OPENING
    server.wait_for(lambda: is_idle(server))
