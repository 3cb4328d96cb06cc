"""The handler with an engine that waits for a latch: order, sharing, bounds, leaving."""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from batching.errors import DeadlineExceeded, EngineFailed, QueueFull, ShuttingDown
from batching.job import Caller
from batching.limits import Limits
from batching.stats import Outcome
from handlers.audio.decode import SAMPLE_RATE
from handlers.errors import InvalidRequest, TooLarge, UnsupportedMedia
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import Heard, Window
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.transcription import FileTranscription
from handlers.transcription.types import Segment, Transcript, TranscriptionRequest, VoiceActivity, Word
from handlers.transcription.vad import VoiceModel
from tests.handlers.audio_files import sound_file, sweep
from tests.handlers.running import running
from tests.handlers.speech_models import EverythingIsSpeech, FakeEngine, LoudnessModel, facts, say_length

SPEC = ModelSpec("whisper", Task.TRANSCRIPTION, "dir:somewhere", isolation="none")

SHORT_WINDOWS = facts(window_seconds=10)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(
    engine: FakeEngine,
    limits: Limits | None = None,
    *,
    max_audio_seconds: float = 600,
    voices: VoiceModel | None = None,
) -> AsyncIterator[WhisperHandler]:
    handler = WhisperHandler(
        replace(SPEC, limits=limits or Limits(max_batch_size=4)),
        Path,
        max_audio_seconds=max_audio_seconds,
        load_engine=lambda spec, folder: engine,
        load_voices=lambda: voices or EverythingIsSpeech(),
    )
    async with running(handler, engine.latch.set):
        yield handler


def recording(seconds: float = 1) -> BytesIO:
    return sound_file(sweep(seconds))


def ask(seconds: float = 1, **options: object) -> TranscriptionRequest:
    return TranscriptionRequest(recording(seconds), **{"language": "de", **options})  # type: ignore[arg-type]


async def transcript(
    handler: WhisperHandler, request: TranscriptionRequest, caller: Caller | None = None
) -> Transcript:
    async with await handler.open(request, caller or Caller()) as transcription:
        async for _ in transcription:
            pass
        return transcription.transcript()


async def occupy(handler: WhisperHandler, engine: FakeEngine, callers: TaskGroup, seconds: float = 1) -> None:
    """Let one transcription run until the latch is lifted."""
    engine.latch.clear()
    callers.start_soon(transcript, handler, ask(seconds))
    await run_sync(engine.started.wait)


async def until(condition: Callable[[], bool]) -> None:
    """Let the threads work until it holds."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


def under_way(handler: WhisperHandler) -> int:
    """Windows that wait or run."""
    return handler.stats().batches.waiting + handler.stats().batches.running


async def consume(transcription: FileTranscription) -> None:
    async for _ in transcription:
        pass


class UnreadableFile(BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("the file was read")


async def test_a_file_becomes_segments_in_order_and_a_transcript() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler, await handler.open(ask(100, prompt="two words"), Caller()) as opened:
        segments = [segment async for segment in opened]
        done = opened.transcript()
    assert [segment.id for segment in segments] == list(range(len(segments)))
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert segments[0].start == 0
    assert segments[-1].end == pytest.approx(100, abs=0.01)
    assert [segment.seek for segment in segments] == [round(segment.start * 100) for segment in segments]
    assert done.segments == tuple(segments)
    assert done.text == "".join(segment.text for segment in segments).strip()
    assert (done.language, done.duration, done.text_tokens) == ("de", 100, 2)
    assert done.output_tokens == 2 * len(segments)
    assert done.audio_tokens == pytest.approx(5000, abs=5)


async def test_what_is_asked_for_reaches_the_engine() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        await transcript(
            handler,
            ask(task="translate", prompt="p", keywords=("k",), temperature=0.5, word_timestamps=True, logprobs=True),
        )
    (options,) = engine.options
    assert (options.task, options.prompt, options.keywords, options.temperature) == ("translate", "p", ("k",), 0.5)
    assert options.word_timestamps
    assert options.logprobs


async def test_windows_of_a_file_share_batches_and_a_lone_clip_starts_at_once() -> None:
    engine = FakeEngine(SHORT_WINDOWS)
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers)
            async with await handler.open(ask(100), Caller()) as long:
                async with anyio.create_task_group() as readers:
                    readers.start_soon(consume, long)
                    await until(lambda: long.transcript().duration > 85)
                    engine.latch.set()
    assert [len(batch) for batch in engine.batches[:2]] == [1, 4]
    assert sum(map(len, engine.batches)) == 12
    assert len(engine.batches) < 7


async def test_windows_of_different_files_share_batches() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers)
            for seconds in (2, 3, 4):
                callers.start_soon(transcript, handler, ask(seconds))
                await until(lambda: handler.stats().batches.waiting == seconds - 1)  # noqa: B023
            engine.latch.set()
    assert engine.batches == [[1], [2, 3, 4]]


async def test_a_file_keeps_few_windows_in_memory_however_long_it_is() -> None:
    engine = FakeEngine(SHORT_WINDOWS)
    engine.latch.clear()
    async with serving(engine) as handler, await handler.open(ask(200), Caller()) as opened:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, opened)
            await until(lambda: opened.transcript().duration > 85)
            await anyio.wait_all_tasks_blocked()
            assert opened.transcript().duration <= 120
            engine.latch.set()


async def test_what_is_heard_is_told_before_more_is_read() -> None:
    class Gated(EverythingIsSpeech):
        """Listens to the first half minute, and to more when the gate is open."""

        def __init__(self) -> None:
            self.gate = threading.Event()
            self.frames = 0

        def run(self, outputs: None, inputs: dict[str, object]) -> list[object]:
            self.frames += len(np.asarray(inputs["input"]))
            if self.frames * 512 > 31 * SAMPLE_RATE:
                self.gate.wait()
            return super().run(outputs, inputs)

    engine, voices = FakeEngine(SHORT_WINDOWS), Gated()
    read: list[float] = []

    async def listen() -> None:
        async for _ in opened:
            read.append(opened.transcript().duration)

    async with serving(engine, voices=voices) as handler, await handler.open(ask(200), Caller()) as opened:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await until(lambda: handler.stats().batches.outcomes[Outcome.COMPLETED] >= 2)
            voices.gate.set()
    assert read[0] < 85 < read[-1] == 200


async def test_who_comes_while_a_long_file_runs_waits_for_one_batch_only() -> None:
    engine = FakeEngine(SHORT_WINDOWS)
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers, 200)
            await until(lambda: under_way(handler) == 4)
            callers.start_soon(transcript, handler, ask(7))
            await until(lambda: under_way(handler) == 5)
            engine.latch.set()
    assert any(7 in batch for batch in engine.batches[:2])


async def test_a_clip_goes_before_the_windows_that_a_long_file_has_waiting() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_batch_size=8, max_batch_cost=60)) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers, 400)
            await until(lambda: under_way(handler) == 8)
            callers.start_soon(transcript, handler, ask(7))
            await until(lambda: under_way(handler) == 9)
            engine.latch.set()
    assert any(7 in batch for batch in engine.batches[:3])


async def test_the_first_window_tells_the_language_of_the_others() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        done = await transcript(handler, ask(100, language=None, languages=("de", "en")))
    assert done.language == "de"
    assert [options.language for options in engine.options] == [None, "de", "de", "de"]
    assert len(engine.batches[0]) == 1


async def test_windows_of_an_engine_that_tells_no_language_share_batches() -> None:
    engine = FakeEngine(facts(languages=(), window_seconds=10))
    async with serving(engine) as handler:
        engine.latch.clear()
        async with anyio.create_task_group() as readers:
            readers.start_soon(transcript, handler, ask(100, language=None))
            await until(lambda: under_way(handler) == 4)
            engine.latch.set()


@pytest.mark.parametrize("request_languages", [(), ("en",)])
async def test_one_possible_language_is_not_detected(request_languages: tuple[str, ...]) -> None:
    engine = FakeEngine(facts() if request_languages else facts(languages=("en",)))
    async with serving(engine) as handler:
        await transcript(handler, ask(language=None, languages=request_languages))
    assert engine.options[0].language == "en"


async def test_silence_is_an_empty_text() -> None:
    engine = FakeEngine()
    async with serving(engine, voices=LoudnessModel()) as handler:
        file = sound_file(np.zeros(40 * SAMPLE_RATE))
        assert await transcript(handler, TranscriptionRequest(file)) == Transcript("", None, 40.0)
    assert engine.batches == []


async def test_times_are_those_of_the_file() -> None:
    """Ten seconds of silence, a second of speech, ten of silence, a second of speech: one window."""

    def hear(window: Window) -> Heard:
        def segment(start: float, end: float, words: Sequence[Word] = ()) -> Segment:
            return Segment(0, 0, start, end, " word", (1,), 0.0, -0.1, 1.0, 0.0, words)

        return Heard([segment(0.4, 1.2), segment(1.9, 2.8, [Word(" word", 1.9, 2.8, 0.9)])], "de", 1, 1)

    second = np.ones(SAMPLE_RATE // 512 * 512, np.float32)
    silence = np.zeros(320 * 512, np.float32)
    file = sound_file(np.concatenate([silence, second, silence, second]), subtype="FLOAT")
    engine = FakeEngine(hear=hear)
    async with serving(engine, voices=LoudnessModel()) as handler:
        done = await transcript(handler, TranscriptionRequest(file, language="de"))
    first, last = done.segments
    assert engine.batches == [[pytest.approx(0.3 + 0.992 + 0.3 + 0.3 + 0.992)]]
    assert [first.start, first.end] == pytest.approx([9.94 + 0.4, 9.94 + 1.2])
    skipped = 10.24 - 0.6
    assert [last.start, last.end] == pytest.approx([9.94 + skipped + 1.9, 9.94 + skipped + 2.8])
    assert (last.words[0].start, last.words[0].end) == (last.start, last.end)
    assert [segment.seek for segment in done.segments] == [994, 994]


async def test_a_caller_who_leaves_drops_the_windows_that_wait() -> None:
    engine = FakeEngine(SHORT_WINDOWS)
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers, 200)
            await until(lambda: under_way(handler) == 4)
            callers.cancel_scope.cancel()
        assert handler.stats().batches.waiting == 0
        assert handler.stats().batches.waiting_cost == 0
        engine.latch.set()
        assert (await transcript(handler, ask(2))).text == "2"
    assert len(engine.batches) == 2


async def test_leaving_in_the_middle_frees_the_place_and_closes_the_reader() -> None:
    engine = FakeEngine(SHORT_WINDOWS)
    async with serving(engine, Limits(max_queue_size=1, max_batch_size=2)) as handler:
        request = ask(200)
        async with await handler.open(request, Caller()) as opened:
            async for _ in opened:
                break
        assert opened.transcript().duration < 200
        request.file.close()
        assert (await transcript(handler, ask(2))).text == "2"


async def test_a_window_that_fails_is_the_readers_error_and_nobody_elses() -> None:
    def hear(window: Window) -> Heard | Exception:
        if window.seconds == 3:
            raise ValueError("poison")
        return say_length(window)

    engine = FakeEngine(hear=hear)
    failed: list[Exception] = []

    async def fail() -> None:
        try:
            await transcript(handler, ask(3))
        except EngineFailed as error:
            failed.append(error)

    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers)
            callers.start_soon(fail)
            callers.start_soon(transcript, handler, ask(2))
            await until(lambda: handler.stats().batches.waiting == 2)
            engine.latch.set()
        assert len(failed) == 1
        assert handler.stats().batches.outcomes[Outcome.FAILED] == 1
        assert handler.stats().batches.outcomes[Outcome.COMPLETED] == 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"#EXTM3U\n", UnsupportedMedia),
        (b"", InvalidRequest),
        (recording(601).getvalue(), TooLarge),
        (sound_file(np.full(SAMPLE_RATE, np.nan), subtype="FLOAT").getvalue(), InvalidRequest),
    ],
    ids=["playlist", "empty", "too long", "not a number"],
)
async def test_a_bad_file_is_refused_and_the_next_one_served(data: bytes, error: type[InvalidRequest]) -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_size=1)) as handler:
        with pytest.raises(error) as refused:
            await handler.open(TranscriptionRequest(BytesIO(data)), Caller())
        assert refused.value.param == "file"
        assert (await transcript(handler, ask())).text == "1"
    assert len(engine.batches) == 1


@pytest.mark.parametrize(
    ("options", "changes", "param", "says"),
    [
        ({"language": "xx"}, {}, "language", "leave `language` out"),
        ({"language": "EN"}, {}, "language", "leave `language` out"),
        ({"language": "en"}, {"languages": ()}, "language", "cannot be told a language. Leave `language` out"),
        ({"languages": ("en",)}, {"languages": ()}, "languages", "Leave `languages` out, or use a multilingual"),
        ({"temperature": 0.5}, {"temperatures": False}, "temperature", "Leave `temperature` out, or send 0"),
        ({"prompt": "Ada"}, {"max_prompt_tokens": 0}, "prompt", "takes no earlier text and no names"),
        ({"keywords": ("Ada",)}, {"max_prompt_tokens": 0}, "keywords", "Leave `prompt` and `keywords` out"),
        ({"language": ""}, {}, "language", "leave `language` out"),
        ({"languages": ("de", "xx")}, {}, "languages", "leave `languages` out"),
        ({"language": "de"}, {"languages": ("en",)}, "language", "only knows `en`"),
        ({"task": "translate"}, {"translates": False}, "model", "multilingual"),
        ({"word_timestamps": True}, {"word_timestamps": False}, "timestamp_granularities", "`segment`"),
        ({"logprobs": True}, {"logprobs": False}, "include", "Leave `logprobs` out"),
        ({"voice_activity": VoiceActivity(prefix_padding_ms=9000)}, {}, "chunking_strategy", "at most 5000"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_before_the_file_is_read(
    options: dict[str, object], changes: dict[str, object], param: str, says: str
) -> None:
    async with serving(FakeEngine(facts(**changes))) as handler:
        with pytest.raises(InvalidRequest, match=says) as refused:
            await handler.open(TranscriptionRequest(UnreadableFile(), **options), Caller())  # type: ignore[arg-type]
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("options", "param"), [({"prompt": "word " * 224}, "prompt"), ({"keywords": ("word",) * 224}, "keywords")]
)
async def test_a_prompt_that_whisper_would_cut_is_refused(options: dict[str, object], param: str) -> None:
    async with serving(FakeEngine()) as handler:
        with pytest.raises(InvalidRequest, match="224 tokens, and at most 223 are taken") as refused:
            await handler.open(TranscriptionRequest(UnreadableFile(), **options), Caller())  # type: ignore[arg-type]
    assert refused.value.param == param


async def test_a_full_queue_refuses_before_it_reads_the_file() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_size=1)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        with pytest.raises(QueueFull):
            await handler.open(TranscriptionRequest(UnreadableFile()), Caller())
        assert handler.stats().batches.refused == 1
        engine.latch.set()


async def test_the_queue_is_counted_in_seconds_of_audio() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_cost=5)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers, 3)
        with pytest.raises(QueueFull) as refused:
            await handler.open(ask(2.5), Caller())
        assert (refused.value.limit, refused.value.unit) == (5, "seconds of audio")
        callers.start_soon(transcript, handler, ask(2))
        engine.latch.set()
    assert len(engine.batches) == 2


async def test_a_deadline_ends_a_file_that_waits() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        with pytest.raises(DeadlineExceeded):
            await transcript(handler, ask(2), Caller(deadline=anyio.current_time()))
        engine.latch.set()


async def test_seconds_that_were_transcribed_are_counted() -> None:
    async with serving(FakeEngine()) as handler:
        for seconds in (1.5, 2.0):
            await transcript(handler, ask(seconds))
        assert handler.stats().audio_seconds == pytest.approx(3.5)


async def test_a_draining_handler_finishes_what_it_has_and_refuses_new_files() -> None:
    engine = FakeEngine()
    results: list[str] = []

    async def collect() -> None:
        results.append((await transcript(handler, ask(100))).text)

    async with serving(engine, Limits(max_batch_size=1)) as handler, anyio.create_task_group() as callers:
        engine.latch.clear()
        callers.start_soon(collect)
        await run_sync(engine.started.wait)
        callers.start_soon(handler.drain)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ShuttingDown):
            await handler.open(TranscriptionRequest(UnreadableFile()), Caller())
        engine.latch.set()
    assert len(results[0].split()) == 4


async def test_the_description_says_what_the_model_can_do_once_it_is_known() -> None:
    engine = FakeEngine(facts(languages=("en",), translates=False))
    handler = WhisperHandler(SPEC, Path, load_engine=lambda spec, folder: engine, load_voices=EverythingIsSpeech)
    assert handler.describe() == {"capabilities": ["transcription"], "max_audio_seconds": 3600}
    await handler.load()
    assert handler.describe() == {
        "capabilities": ["transcription"],
        "max_audio_seconds": 3600,
        "languages": ["en"],
        "translates": False,
        "word_timestamps": True,
        "temperatures": True,
        "logprobs": True,
        "device": "cpu",
        "dtype": "int8",
        "isolation": "none",
    }


async def test_the_model_is_loaded_from_the_folder_of_its_source() -> None:
    opened: list[Path] = []

    def load_engine(spec: ModelSpec, folder: Path) -> FakeEngine:
        opened.append(folder)
        return FakeEngine()

    handler = WhisperHandler(
        SPEC, lambda source: Path(f"/cache/{source}"), load_engine=load_engine, load_voices=EverythingIsSpeech
    )
    await handler.load()
    assert opened == [Path("/cache/dir:somewhere")]
