import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import ctranslate2
import numpy as np
import pytest
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from batching.errors import QueueFull, ShuttingDown
from batching.job import Caller, CancelToken
from batching.limits import Limits
from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError, TooLarge, UnsupportedMedia
from handlers.sources import fetch
from handlers.spec import ModelSpec, Task
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from handlers.transcription import faster_whisper
from handlers.transcription.faster_whisper import WhisperEngine, load
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.types import Transcript, TranscriptionRequest
from tests.handlers.audio_files import CONTAINERS, encoded, sound_file, sweep
from tests.wer import word_error_rate

BECKETT = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."
SPEC = ModelSpec("whisper", Task.TRANSCRIPTION, "dir:somewhere")


class FakeEngine:
    """Says how long the audio was; while the latch is down it waits, as a long decoding would."""

    def __init__(self, languages: Sequence[str] = ("de", "en")) -> None:
        self.languages = languages
        self.device, self.dtype = "cpu", "int8"
        self.started = threading.Event()
        self.latch = threading.Event()
        self.latch.set()
        self.calls: list[tuple[TranscriptionRequest, CancelToken]] = []

    def transcribe(self, waveform: Waveform, request: TranscriptionRequest, cancel: CancelToken) -> Transcript:
        self.calls.append((request, cancel))
        self.started.set()
        self.latch.wait()
        return Transcript(f"{len(waveform) / SAMPLE_RATE:g} seconds", request.language, len(waveform) / SAMPLE_RATE)


@asynccontextmanager
async def serving(
    engine: FakeEngine, limits: Limits | None = None, max_audio_seconds: float = 60
) -> AsyncIterator[WhisperHandler]:
    handler = WhisperHandler(
        replace(SPEC, limits=limits or Limits()),
        Path,
        max_audio_seconds=max_audio_seconds,
        load_engine=lambda spec, folder: engine,
    )
    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        try:
            yield handler
        finally:
            engine.latch.set()
            tasks.cancel_scope.cancel()


def recording(seconds: float = 1) -> BytesIO:
    return sound_file(sweep(seconds))


async def occupy(handler: WhisperHandler, engine: FakeEngine, callers: TaskGroup) -> None:
    """Let one transcription run until the latch is lifted."""
    engine.latch.clear()
    callers.start_soon(handler.transcribe, TranscriptionRequest(recording()), Caller())
    await run_sync(engine.started.wait)


async def queue(handler: WhisperHandler, file: BytesIO, callers: TaskGroup) -> None:
    """Put one transcription into the queue behind the one that runs."""
    callers.start_soon(handler.transcribe, TranscriptionRequest(file), Caller())
    await measured(handler)


async def measured(handler: WhisperHandler) -> None:
    """Return when the files sent so far wait in the queue: files are measured one by one, and this one has its turn."""
    await anyio.wait_all_tasks_blocked()
    with pytest.raises((InvalidRequest, QueueFull)):
        await handler.transcribe(TranscriptionRequest(BytesIO()), Caller())


class UnreadableFile(BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("the file was read")


@pytest.mark.anyio
async def test_a_file_becomes_text() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        request = TranscriptionRequest(recording(1.5), language="de", prompt="Namen", temperature=0.5)
        assert await handler.transcribe(request, Caller()) == Transcript("1.5 seconds", "de", 1.5)
    assert engine.calls[0][0] is request


@pytest.mark.anyio
@pytest.mark.parametrize("language", ["xx", "english", "en-US", "EN", ""])
async def test_a_language_that_the_model_does_not_know_is_refused(language: str) -> None:
    async with serving(FakeEngine()) as handler:
        with pytest.raises(InvalidRequest, match="leave `language` out") as refused:
            await handler.transcribe(TranscriptionRequest(UnreadableFile(), language), Caller())
    assert refused.value.param == "language"
    assert repr(language) in refused.value.message


@pytest.mark.anyio
async def test_an_english_only_model_says_so() -> None:
    async with serving(FakeEngine(["en"])) as handler:
        with pytest.raises(InvalidRequest, match="only knows `en`") as refused:
            await handler.transcribe(TranscriptionRequest(UnreadableFile(), "de"), Caller())
    assert refused.value.param == "language"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"#EXTM3U\n", UnsupportedMedia),
        (b"", InvalidRequest),
        (recording(61).getvalue(), TooLarge),
        (sound_file(np.full(SAMPLE_RATE, np.nan), subtype="FLOAT").getvalue(), InvalidRequest),
    ],
)
async def test_a_bad_file_is_refused_and_the_next_one_served(data: bytes, error: type[InvalidRequest]) -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        with pytest.raises(error) as refused:
            await handler.transcribe(TranscriptionRequest(BytesIO(data)), Caller())
        assert refused.value.param == "file"
        assert (await handler.transcribe(TranscriptionRequest(recording()), Caller())).text == "1 seconds"
    assert len(engine.calls) == 1


@pytest.mark.anyio
async def test_a_full_queue_refuses_before_it_reads_the_file() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_size=1)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        await queue(handler, recording(), callers)
        with pytest.raises(QueueFull):
            await handler.transcribe(TranscriptionRequest(UnreadableFile()), Caller())
        engine.latch.set()


@pytest.mark.anyio
async def test_the_queue_is_counted_in_seconds_of_audio() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_cost=5)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        await queue(handler, recording(2.5), callers)
        with pytest.raises(QueueFull) as refused:
            await handler.transcribe(TranscriptionRequest(recording(2.5)), Caller())
        assert refused.value.limit == 5
        callers.start_soon(handler.transcribe, TranscriptionRequest(recording(2)), Caller())
        engine.latch.set()
    assert len(engine.calls) == 3


@pytest.mark.anyio
async def test_a_caller_who_leaves_cancels_the_transcription_that_runs() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers)
            callers.cancel_scope.cancel()
        assert engine.calls[0][1].cancelled
        engine.latch.set()
        assert (await handler.transcribe(TranscriptionRequest(recording(2)), Caller())).text == "2 seconds"


@pytest.mark.anyio
async def test_a_caller_who_leaves_the_queue_costs_no_transcription() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        async with anyio.create_task_group() as impatient:
            await queue(handler, recording(3), impatient)
            impatient.cancel_scope.cancel()
        engine.latch.set()
        assert (await handler.transcribe(TranscriptionRequest(recording(2)), Caller())).text == "2 seconds"
    assert len(engine.calls) == 2


@pytest.mark.anyio
async def test_a_file_closed_while_it_waited_is_refused_and_not_a_crash() -> None:
    engine, file = FakeEngine(), recording(3)
    refusals: list[InvalidRequest] = []

    async def transcribe() -> None:
        try:
            await handler.transcribe(TranscriptionRequest(file), Caller())
        except InvalidRequest as refusal:
            refusals.append(refusal)

    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        callers.start_soon(transcribe)
        await measured(handler)
        file.close()
        engine.latch.set()
    assert [refusal.param for refusal in refusals] == ["file"]


@pytest.mark.anyio
async def test_seconds_that_were_transcribed_are_counted() -> None:
    async with serving(FakeEngine()) as handler:
        for seconds in (1.5, 2.0):
            await handler.transcribe(TranscriptionRequest(recording(seconds)), Caller())
        assert handler.stats().audio_seconds == pytest.approx(3.5)


@pytest.mark.anyio
async def test_a_draining_handler_refuses_new_files() -> None:
    async with serving(FakeEngine()) as handler:
        await handler.drain()
        with pytest.raises(ShuttingDown):
            await handler.transcribe(TranscriptionRequest(UnreadableFile()), Caller())


@pytest.mark.anyio
async def test_the_description_names_the_languages_once_they_are_known() -> None:
    engine = FakeEngine(["en"])
    handler = WhisperHandler(SPEC, Path, load_engine=lambda spec, folder: engine)
    assert handler.describe() == {"capabilities": ["transcription"], "max_audio_seconds": 3600}
    await handler.load()
    assert handler.describe() == {
        "capabilities": ["transcription"],
        "max_audio_seconds": 3600,
        "languages": ["en"],
        "device": "cpu",
        "dtype": "int8",
    }


@pytest.mark.anyio
async def test_the_model_is_loaded_from_the_folder_of_its_source() -> None:
    opened: list[Path] = []

    def load_engine(spec: ModelSpec, folder: Path) -> FakeEngine:
        opened.append(folder)
        return FakeEngine()

    handler = WhisperHandler(SPEC, lambda source: Path(f"/cache/{source}"), load_engine=load_engine)
    await handler.load()
    assert opened == [Path("/cache/dir:somewhere")]


class FakeWhisper:
    """Stands in for faster-whisper's model: three segments for every piece of audio."""

    def __init__(self, supported_languages: Sequence[str] = ("de", "en")) -> None:
        self.supported_languages = list(supported_languages)
        self.calls: list[dict[str, Any]] = []
        self.lengths: list[int] = []
        self.segments = 0

    def transcribe(self, audio: Waveform, **options: Any) -> tuple[Iterator[Any], Any]:
        self.calls.append(options)
        self.lengths.append(len(audio))
        return self._speak(), SimpleNamespace(language=options["language"] or "de")

    def _speak(self) -> Iterator[Any]:
        for word in (" One", " two", " three."):
            self.segments += 1
            yield SimpleNamespace(text=word)


@pytest.fixture
def all_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster_whisper, "get_speech_timestamps", lambda audio: [{"start": 0, "end": len(audio)}])


def ask(**options: Any) -> TranscriptionRequest:
    return TranscriptionRequest(BytesIO(), **options)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(0),
        np.zeros(1),
        np.zeros(5 * SAMPLE_RATE),
        np.sin(np.arange(5 * SAMPLE_RATE) / 50),
        np.ones(SAMPLE_RATE),
    ],
    ids=["nothing", "one sample", "silence", "hum", "direct current"],
)
def test_where_nobody_speaks_the_model_is_not_asked(sound: Waveform) -> None:
    model = FakeWhisper()
    transcript = WhisperEngine(model, "cpu", "int8").transcribe(sound.astype(np.float32), ask(), CancelToken())
    assert transcript == Transcript("", None, len(sound) / SAMPLE_RATE)
    assert model.calls == []


@pytest.mark.usefixtures("all_is_speech")
def test_segments_are_joined_and_the_language_detected() -> None:
    transcript = WhisperEngine(FakeWhisper(), "cpu", "int8").transcribe(sweep(1), ask(), CancelToken())
    assert transcript == Transcript("One two three.", "de", 1)


@pytest.mark.usefixtures("all_is_speech")
def test_long_audio_is_cut_into_windows_where_it_is_quiet() -> None:
    model = FakeWhisper()
    audio = np.ones(300 * SAMPLE_RATE, np.float32)
    audio[100 * SAMPLE_RATE : 101 * SAMPLE_RATE] = 0
    transcript = WhisperEngine(model, "cpu", "int8").transcribe(audio, ask(prompt="Names."), CancelToken())
    assert 100 <= model.lengths[0] / SAMPLE_RATE <= 101
    assert max(model.lengths) <= 120 * SAMPLE_RATE
    assert sum(model.lengths) == len(audio)
    assert transcript == Transcript(" ".join(["One two three."] * 3), "de", 300)
    assert [call["language"] for call in model.calls] == [None, "de", "de"]
    assert [call["initial_prompt"] for call in model.calls] == ["Names."] * 3


@pytest.mark.usefixtures("all_is_speech")
def test_a_cancelled_transcription_stops_at_the_next_segment() -> None:
    model, cancel = FakeWhisper(), CancelToken()
    cancel.cancel()
    WhisperEngine(model, "cpu", "int8").transcribe(np.ones(300 * SAMPLE_RATE, np.float32), ask(), cancel)
    assert model.segments == 1


@pytest.mark.usefixtures("all_is_speech")
@pytest.mark.parametrize(("temperature", "sent"), [(0.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)), (0.3, 0.3)])
def test_temperature_0_is_the_fallback_ladder(temperature: float, sent: object) -> None:
    model = FakeWhisper()
    WhisperEngine(model, "cpu", "int8").transcribe(sweep(1), ask(temperature=temperature), CancelToken())
    assert model.calls[0]["temperature"] == sent


@pytest.mark.usefixtures("all_is_speech")
def test_an_english_only_model_needs_no_detection() -> None:
    model = FakeWhisper(["en"])
    assert WhisperEngine(model, "cpu", "int8").transcribe(sweep(1), ask(), CancelToken()).language == "en"
    assert model.calls[0]["language"] == "en"


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="has no model.bin, tokenizer.json"):
        load(SPEC, tmp_path)


def test_a_damaged_model_is_one_clear_line(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"\xff{\n")
    with pytest.raises(
        ModelLoadError, match="whisper: cannot run .* on cpu in int8: .*fetch the files again"
    ) as failed:
        load(replace(SPEC, device="cpu"), tmp_path)
    assert "\n" not in str(failed.value)


def test_a_missing_cuda_device_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    with pytest.raises(ModelLoadError, match="no CUDA device here; set its device to cpu or auto"):
        load(replace(SPEC, device="cuda:1"), tmp_path)


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> WhisperEngine:
    return load(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))


@pytest.fixture(scope="module")
def beckett(models_dir: Path) -> Path:
    return fetch(SPEECH_SAMPLES, models_dir) / "beckett.wav"


@pytest.mark.models
@pytest.mark.anyio
async def test_recorded_speech_is_transcribed(
    models_dir: Path, beckett: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handler = WhisperHandler(TRANSCRIPTION, lambda source: fetch(source, models_dir))
    await handler.load()
    assert "whisper-tiny.en runs on" in caplog.text
    with beckett.open("rb") as file:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handler.run)
            transcript = await handler.transcribe(TranscriptionRequest(file), Caller())
            tasks.cancel_scope.cancel()
    assert word_error_rate(BECKETT, transcript.text) <= 0.1
    assert transcript.language == "en"
    assert transcript.duration == pytest.approx(9.96, abs=0.01)


@pytest.mark.models
@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_format_is_transcribed(whisper: WhisperEngine, beckett: Path, kind: str) -> None:
    with beckett.open("rb") as original:
        speech = decode(original, max_seconds=60)
    waveform = decode(BytesIO(encoded(kind, speech)), max_seconds=60)
    assert word_error_rate(BECKETT, whisper.transcribe(waveform, ask(), CancelToken()).text) <= 0.1


@pytest.mark.models
def test_silence_and_noise_are_no_words(whisper: WhisperEngine) -> None:
    noise = np.random.default_rng(0).normal(scale=0.05, size=10 * SAMPLE_RATE).astype(np.float32)
    for sound in (np.zeros(10 * SAMPLE_RATE, np.float32), noise):
        assert whisper.transcribe(sound, ask(), CancelToken()).text == ""


@pytest.mark.models
def test_a_prompt_of_control_tokens_does_no_harm(whisper: WhisperEngine, beckett: Path) -> None:
    with beckett.open("rb") as file:
        speech = decode(file, max_seconds=60)
    request = ask(prompt="<|endoftext|><|startoftranscript|>\0", temperature=0.0)
    assert word_error_rate(BECKETT, whisper.transcribe(speech, request, CancelToken()).text) <= 0.1


@pytest.mark.models
def test_a_number_format_that_the_device_lacks_is_a_clear_error(models_dir: Path) -> None:
    folder = fetch(TRANSCRIPTION.source, models_dir)
    with pytest.raises(ModelLoadError, match="in float16: .*choose another dtype"):
        load(replace(TRANSCRIPTION, device="cpu", dtype="float16"), folder)


@pytest.mark.anyio
async def test_a_prompt_that_whisper_would_cut_is_refused() -> None:
    handler = WhisperHandler(SPEC, Path, load_engine=lambda spec, folder: FakeEngine())
    await handler.load()
    with pytest.raises(InvalidRequest, match="at most 890 are taken") as refused:
        await handler.transcribe(TranscriptionRequest(BytesIO(), prompt="word " * 240), Caller())
    assert refused.value.param == "prompt"
