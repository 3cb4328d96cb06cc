import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from batching.errors import QueueFull, ShuttingDown
from batching.job import Caller, CancelToken
from batching.limits import Limits
from batching.stats import Outcome
from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.encode import MEDIA_TYPES
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.sources import fetch
from handlers.spec import ModelSpec, Task
from handlers.speech import handler as speech_handler
from handlers.speech import hibari
from handlers.speech.handler import HibariHandler
from handlers.speech.hibari import HibariEngine
from handlers.speech.types import Speech, SpeechRequest
from handlers.speech.voices import PREFERRED, voices_in_force
from handlers.starter import SPEECH, TRANSCRIPTION
from handlers.transcription.faster_whisper import WhisperEngine
from handlers.transcription.faster_whisper import load as load_whisper
from handlers.transcription.types import TranscriptionRequest
from tests.handlers.audio_files import likeness, sweep
from tests.wer import word_error_rate

SPEC = ModelSpec("voices", Task.SPEECH, "dir:somewhere")
TEXT = (
    "The committee met on Tuesday and agreed to publish the whole report. "
    "Nobody expected the weather to change so quickly, but the harvest was already safe in the barns. "
    "Please send the corrected figures before noon."
)


class FakeEngine:
    """A second of sound for every sentence; while the latch is down it waits before the second one."""

    device, dtype = "cpu", "int8"
    sample_rate = 24_000

    def __init__(self) -> None:
        self.voices: Mapping[str, str] = {"alloy": "heart", "heart": "heart"}
        self.started = threading.Event()
        self.latch = threading.Event()
        self.latch.set()
        self.spoken: list[str] = []

    def speak(self, text: str, voice: str, speed: float) -> Iterator[Waveform]:
        if text == "unreadable":
            raise InvalidRequest("cannot be read", "input")
        for sentence in text.split(". "):
            if not any(symbol.isalpha() for symbol in sentence):
                continue
            self.spoken.append(f"{voice} at {speed:g}: {sentence}")
            yield sweep(1, self.sample_rate)
            self.started.set()
            self.latch.wait()


@asynccontextmanager
async def serving(engine: FakeEngine, limits: Limits | None = None) -> AsyncIterator[HibariHandler]:
    handler = HibariHandler(replace(SPEC, limits=limits or Limits()), Path, load_engine=lambda spec, folder: engine)
    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        try:
            yield handler
        finally:
            engine.latch.set()
            tasks.cancel_scope.cancel()


async def refusal(request: SpeechRequest) -> InvalidRequest:
    async with serving(FakeEngine()) as handler:
        with pytest.raises(InvalidRequest) as refused:
            await handler.synthesize(request, Caller())
    return refused.value


async def occupy(handler: HibariHandler, engine: FakeEngine, callers: TaskGroup) -> None:
    """Let one synthesis run until the latch is lifted."""
    engine.latch.clear()
    callers.start_soon(handler.synthesize, SpeechRequest("One. Two. Three", "alloy"), Caller())
    await run_sync(engine.started.wait)


@pytest.mark.anyio
@pytest.mark.parametrize("format", MEDIA_TYPES)
async def test_text_becomes_a_file_of_the_format_asked_for(format: str) -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        speech = await handler.synthesize(SpeechRequest("One. Two", "alloy", format, 1.5), Caller())
    assert engine.spoken == ["heart at 1.5: One", "heart at 1.5: Two"]
    assert (speech.media_type, speech.voice) == (MEDIA_TYPES[format], "heart")
    assert speech.duration == pytest.approx(2, abs=0.001)
    if format != "pcm":
        twice = np.concatenate([sweep(1, SAMPLE_RATE)] * 2)
        assert likeness(decode(BytesIO(speech.audio), max_seconds=10), twice) > 0.95


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
async def test_a_text_of_nothing_is_refused(text: str) -> None:
    assert (await refusal(SpeechRequest(text, "alloy"))).param == "input"


@pytest.mark.anyio
async def test_a_text_over_the_limit_is_refused_and_one_at_the_limit_spoken() -> None:
    error = await refusal(SpeechRequest("a" * 4097, "alloy"))
    assert (error.param, error.code) == ("input", "string_above_max_length")
    assert "4097 characters, and at most 4096" in error.message
    async with serving(FakeEngine()) as handler:
        assert (await handler.synthesize(SpeechRequest("a" * 4096, "alloy"), Caller())).duration > 0


@pytest.mark.anyio
async def test_a_text_that_cannot_be_pronounced_is_refused() -> None:
    error = await refusal(SpeechRequest("!!! 😀", "alloy"))
    assert error.param == "input"
    assert "pronounced" in error.message


@pytest.mark.anyio
async def test_what_the_engine_refuses_reaches_the_caller() -> None:
    assert (await refusal(SpeechRequest("unreadable", "alloy"))).message == "cannot be read"


@pytest.mark.anyio
async def test_an_unknown_voice_is_refused_with_the_names_of_those_there_are() -> None:
    error = await refusal(SpeechRequest("Hello", "Alloy"))
    assert error.param == "voice"
    assert "'Alloy'" in error.message
    assert "alloy, heart" in error.message


@pytest.mark.anyio
async def test_an_unknown_format_is_refused_with_the_names_of_those_there_are() -> None:
    error = await refusal(SpeechRequest("Hello", "alloy", "ogg"))
    assert error.param == "response_format"
    assert "mp3, opus, aac, flac, wav, pcm" in error.message


@pytest.mark.anyio
@pytest.mark.parametrize("speed", [0.24, 4.01, -1, 0, float("nan"), float("inf")])
async def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    error = await refusal(SpeechRequest("Hello", "alloy", speed=speed))
    assert error.param == "speed"
    assert "between 0.25 and 4" in error.message


@pytest.mark.anyio
async def test_a_text_that_takes_too_long_to_speak_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_handler, "MAX_SECONDS", 120)
    error = await refusal(SpeechRequest(". ".join(["a"] * 200), "alloy", "wav"))
    assert error.param == "input"
    assert "more than 2 minutes" in error.message


@pytest.mark.anyio
async def test_a_caller_who_leaves_cancels_the_synthesis_after_the_sentence() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers)
            callers.cancel_scope.cancel()
        engine.latch.set()
        await handler.synthesize(SpeechRequest("Next", "alloy"), Caller())
    assert engine.spoken == ["heart at 1: One", "heart at 1: Two", "heart at 1: Next"]


@pytest.mark.anyio
async def test_the_queue_is_counted_in_characters() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_cost=10)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        callers.start_soon(handler.synthesize, SpeechRequest("12345678", "alloy"), Caller())
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await handler.synthesize(SpeechRequest("abc", "alloy"), Caller())
        callers.cancel_scope.cancel()


@pytest.mark.anyio
async def test_seconds_that_were_spoken_are_counted() -> None:
    async with serving(FakeEngine()) as handler:
        await handler.synthesize(SpeechRequest("One. Two", "alloy", "wav"), Caller())
        await handler.synthesize(SpeechRequest("Three", "alloy", "wav"), Caller())
        with pytest.raises(InvalidRequest):
            await handler.synthesize(SpeechRequest("unreadable", "alloy"), Caller())
        stats = handler.stats()
    assert stats.audio_seconds == pytest.approx(3, abs=0.01)
    ended = {outcome for outcome, count in stats.batches.outcomes.items() if count}
    assert ended == {Outcome.COMPLETED, Outcome.REJECTED}


@pytest.mark.anyio
async def test_a_draining_handler_refuses_new_texts() -> None:
    async with serving(FakeEngine()) as handler:
        await handler.drain()
        with pytest.raises(ShuttingDown):
            await handler.synthesize(SpeechRequest("Hello", "alloy"), Caller())


@pytest.mark.anyio
async def test_the_description_names_the_voices_once_they_are_known() -> None:
    handler = HibariHandler(SPEC, Path, load_engine=lambda spec, folder: FakeEngine())
    formats = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
    assert handler.describe() == {"capabilities": ["speech"], "formats": formats}
    await handler.load()
    assert handler.describe() == {
        "capabilities": ["speech"],
        "formats": formats,
        "voices": {"alloy": "heart", "heart": "heart"},
        "device": "cpu",
        "dtype": "int8",
    }


def test_every_openai_voice_is_spoken_by_the_only_local_one() -> None:
    voices = voices_in_force(["heart"])
    assert len(PREFERRED) == 13
    assert voices == dict.fromkeys([*PREFERRED, "heart"], "heart")


def test_openai_voices_prefer_the_local_voice_that_sounds_like_them() -> None:
    voices = voices_in_force(["heart", "emma", "fable", "fenrir", "kore"])
    assert (voices["onyx"], voices["sage"], voices["fable"], voices["emma"]) == ("fenrir", "emma", "fable", "emma")


@pytest.fixture(scope="module")
def engine() -> HibariEngine:
    return hibari.load(SPEECH, fetch(SPEECH.source, Path()))


def spoken(engine: HibariEngine, text: str, speed: float = 1.0) -> Waveform:
    return np.concatenate([np.zeros(0, np.float32), *engine.speak(text, "heart", speed)])


@pytest.mark.models
def test_only_voices_on_this_machine_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path / "cache"))
    folder = fetch(SPEECH.source, Path())
    assert set(hibari.load(SPEECH, folder).voices.values()) == {"heart"}
    bundled = (folder / "assets" / "hibari.onnx").read_bytes()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bf_emma.int8.onnx").write_bytes(bundled)
    (tmp_path / "af_kore.int8.onnx").write_bytes(bundled)
    voices = hibari.load(SPEECH, tmp_path).voices
    assert (voices["sage"], voices["coral"], voices["onyx"]) == ("emma", "kore", "heart")


@pytest.mark.models
def test_a_british_voice_has_its_own_pronunciation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    (tmp_path / "bf_emma.int8.onnx").write_bytes((fetch(SPEECH.source, Path()) / "assets" / "hibari.onnx").read_bytes())
    engine = hibari.load(SPEECH, tmp_path)
    american, british = (np.concatenate(list(engine.speak("Better.", voice, 1.0))) for voice in ("heart", "emma"))
    assert not np.array_equal(american, british)


@pytest.mark.models
def test_a_damaged_voice_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "hibari.onnx").write_bytes(b"\xff\n")
    with pytest.raises(
        ModelLoadError, match="hibari: the voice heart cannot be opened: .*install hibari-tts"
    ) as failed:
        hibari.load(SPEECH, tmp_path)
    assert "\n" not in str(failed.value)


@pytest.mark.models
def test_the_same_text_gives_the_same_sound(engine: HibariEngine) -> None:
    np.testing.assert_array_equal(spoken(engine, TEXT), spoken(engine, TEXT))


@pytest.mark.models
def test_text_is_spoken_a_sentence_at_a_time(engine: HibariEngine) -> None:
    assert len(list(engine.speak(TEXT, "heart", 1.0))) == 3


@pytest.mark.models
@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
def test_speed_divides_the_duration(engine: HibariEngine, speed: float) -> None:
    # The voice sets its own pauses, so the model's own range is only roughly proportional.
    assert len(spoken(engine, TEXT, speed)) == pytest.approx(len(spoken(engine, TEXT)) / speed, rel=0.12)


@pytest.mark.models
@pytest.mark.parametrize("text", ["!!!", "...", "😀😀", "你好世界", "—", "“”", "\0", "/" * 100])
def test_what_nobody_can_pronounce_is_silent(engine: HibariEngine, text: str) -> None:
    assert len(spoken(engine, text)) == 0


@pytest.mark.models
def test_signs_without_a_reading_are_the_callers_mistake(engine: HibariEngine) -> None:
    with pytest.raises(InvalidRequest, match="cannot read") as refused:
        spoken(engine, "Item 4\U0001f105a.")
    assert refused.value.param == "input"


@pytest.mark.models
@pytest.mark.parametrize("text", ["9" * 200, "%" * 200, "a-" * 100, "aB" * 100, "http://" + "x" * 200])
def test_endless_words_are_spoken_in_pieces(engine: HibariEngine, text: str) -> None:
    assert len(spoken(engine, text)) > 0


@pytest.mark.models
def test_a_long_sentence_without_a_comma_is_spoken_in_pieces(engine: HibariEngine) -> None:
    pieces = list(engine.speak("word " * 200, "heart", 1.0))
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 60 * engine.sample_rate


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> WhisperEngine:
    return load_whisper(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))


def heard(whisper: WhisperEngine, speech: Speech) -> str:
    waveform = decode(BytesIO(speech.audio), max_seconds=60)
    return whisper.transcribe(waveform, TranscriptionRequest(BytesIO()), CancelToken()).text


@pytest.mark.models
@pytest.mark.anyio
@pytest.mark.parametrize(("format", "speed"), [("mp3", 1.0), ("opus", 1.0), ("aac", 1.0), ("wav", 2.0), ("flac", 0.4)])
async def test_what_is_spoken_is_understood(
    engine: HibariEngine, whisper: WhisperEngine, format: str, speed: float
) -> None:
    handler = HibariHandler(SPEECH, Path, load_engine=lambda spec, folder: engine)
    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        speech = await handler.synthesize(SpeechRequest(TEXT, "alloy", format, speed), Caller())
        tasks.cancel_scope.cancel()
    assert word_error_rate(TEXT, heard(whisper, speech)) <= 0.1


@pytest.mark.models
@pytest.mark.anyio
async def test_loading_says_what_runs_where(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    handler = HibariHandler(SPEECH, lambda source: fetch(source, Path()))
    await handler.load()
    assert "hibari runs on cpu in int8 with the voices heart" in caplog.text
    assert handler.describe()["voices"]["alloy"] == "heart"
