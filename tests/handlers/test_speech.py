"""The synthesis handler around an engine that is a function."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
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
from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.encode import MEDIA_TYPES
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.speech.handler import SynthesisHandler
from handlers.speech.loading import load_engine
from handlers.speech.synthesis import Synthesis
from handlers.speech.types import Script, Sentence, SpeechRequest
from handlers.speech.voices import PREFERRED, shared_out, voices_in_force
from tests.clock import until
from tests.handlers.audio_files import likeness, sweep
from tests.handlers.running import running

SPEC = ModelSpec("voices", Task.SPEECH, "dir:somewhere")
LONG = ". ".join(f"Sentence {n}" for n in range(20))


class FakeEngine:
    """A second of sound for every sentence. While the latch is down, it waits before each but the first `free` ones.

    batched: what came in each call.
    """

    device, dtype = "cpu", "int8"
    sample_rate = 24_000

    def __init__(self, *, batches: bool = False, free: int = 1) -> None:
        self.voices: Mapping[str, str] = {"alloy": "heart", "heart": "heart"}
        self.batches = batches
        self.free = free
        self.held = threading.Event()
        self.latch = threading.Event()
        self.latch.set()
        self.batched: list[list[str]] = []

    @property
    def spoken(self) -> list[str]:
        return [text for batch in self.batched for text in batch]

    def prepare(self, text: str) -> Script:
        if text == "unreadable":
            raise InvalidRequest("cannot be read", "input")
        sentences = tuple(part for part in text.split(". ") if any(map(str.isalnum, part)))
        return Script(sentences, float(len(text)), frozenset({"greek"} if "α" in text else ()))

    def speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        if len(self.spoken) >= self.free:
            self.held.set()
            self.latch.wait()
        self.batched.append([it.text if it.speed == 1 else f"{it.text} at {it.speed:g}" for it in sentences])
        return [self._speak(sentence.text) for sentence in sentences]

    def _speak(self, text: str) -> Waveform | Exception:
        if text == "Poison":
            raise RuntimeError("the engine cannot")
        return InvalidRequest("cannot be said", "input") if text == "Mumble" else sweep(1, self.sample_rate)


@asynccontextmanager
async def serving(
    engine: FakeEngine, limits: Limits | None = None, max_characters: int = 4096
) -> AsyncIterator[SynthesisHandler]:
    handler = SynthesisHandler(
        replace(SPEC, limits=limits or Limits()),
        Path,
        max_characters=max_characters,
        load_engine=lambda spec, folder: engine,
    )
    async with running(handler, engine.latch.set):
        yield handler


async def speak(handler: SynthesisHandler, request: SpeechRequest, caller: Caller | None = None) -> bytes:
    async with await handler.open(request, caller or Caller()) as synthesis:
        return b"".join([chunk async for chunk in synthesis])


async def refusal(request: SpeechRequest, max_characters: int = 4096) -> InvalidRequest:
    async with serving(FakeEngine(), max_characters=max_characters) as handler:
        with pytest.raises(InvalidRequest) as refused:
            await speak(handler, request)
    return refused.value


async def occupy(handler: SynthesisHandler, engine: FakeEngine, callers: TaskGroup, text: str = "One. Two") -> None:
    """Let one synthesis run until the latch is lifted: its first sentence is there, the next one is being made."""
    engine.latch.clear()
    callers.start_soon(speak, handler, SpeechRequest(text, "alloy", "pcm"))
    await run_sync(engine.held.wait)


@pytest.mark.anyio
@pytest.mark.parametrize("format", MEDIA_TYPES)
async def test_text_becomes_audio_of_the_format_asked_for(format: str) -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        async with await handler.open(SpeechRequest("One. Two", "alloy", format, 1.5), Caller()) as synthesis:
            audio = b"".join([chunk async for chunk in synthesis])
    assert engine.spoken == ["One at 1.5", "Two at 1.5"]
    assert (synthesis.media_type, synthesis.voice) == (MEDIA_TYPES[format], "heart")
    assert (synthesis.input_tokens, synthesis.output_tokens) == (8, 40)
    if format != "pcm":
        twice = np.concatenate([sweep(1, SAMPLE_RATE)] * 2)
        assert likeness(decode(BytesIO(audio), max_seconds=10), twice) > 0.95


@pytest.mark.anyio
@pytest.mark.parametrize("format", MEDIA_TYPES)
async def test_the_first_chunk_comes_before_the_last_sentence_is_made(format: str) -> None:
    engine = FakeEngine()
    engine.latch.clear()
    async with serving(engine) as handler:
        async with await handler.open(SpeechRequest("One. Two. Three", "alloy", format), Caller()) as synthesis:
            chunks = aiter(synthesis)
            first = await anext(chunks)
            assert first and engine.spoken == ["One"]
            engine.latch.set()
            assert [chunk async for chunk in chunks]
    assert engine.spoken == ["One", "Two", "Three"]


@pytest.mark.anyio
@pytest.mark.parametrize(("batches", "most"), [(False, 2), (True, 8)])
async def test_a_slow_reader_lets_few_sentences_be_made_ahead(batches: bool, most: int) -> None:
    engine = FakeEngine(batches=batches)
    async with serving(engine, Limits(max_batch_size=4)) as handler:
        async with await handler.open(SpeechRequest(LONG, "alloy", "pcm"), Caller()) as synthesis:
            chunks = aiter(synthesis)
            await anext(chunks)
            for text in ("Others", "meanwhile"):  # who are answered after what is made ahead
                await speak(handler, SpeechRequest(text, "alloy", "pcm"))
            assert len(engine.spoken) == 1 + most + 2
            assert len(b"".join([chunk async for chunk in chunks])) > 18 * 48_000
    assert len(engine.spoken) == 22


@pytest.mark.anyio
async def test_a_short_text_waits_for_a_sentence_of_a_long_one() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers, LONG)
        callers.start_soon(speak, handler, SpeechRequest("Short", "alloy", "pcm"))
        await until(lambda: handler._batcher.waiting > 0)
        engine.latch.set()
    assert engine.spoken.index("Short") == 2
    assert len(engine.spoken) == 21


@pytest.mark.anyio
async def test_sentences_of_several_requests_share_batches_and_each_gets_its_own_in_order() -> None:
    engine = FakeEngine(batches=True)
    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers)
        for name in ("A", "B"):
            text = ". ".join(f"{name}{n}" for n in range(6))
            callers.start_soon(speak, handler, SpeechRequest(text, "alloy", "pcm"))
        await until(lambda: handler._batcher.waiting == 2)
        engine.latch.set()
    assert ["A0", "B0"] in engine.batched
    assert [text for text in engine.spoken if text[0] == "A"] == [f"A{n}" for n in range(6)]


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
async def test_a_text_of_nothing_is_refused(text: str) -> None:
    assert (await refusal(SpeechRequest(text, "alloy"))).param == "input"


@pytest.mark.anyio
@pytest.mark.parametrize("most", [4096, 10_000])
async def test_a_text_over_the_limit_is_refused_and_one_at_the_limit_spoken(most: int) -> None:
    error = await refusal(SpeechRequest("a" * (most + 1), "alloy", speed=4), most)
    assert (error.param, error.code) == ("input", "string_above_max_length")
    assert f"{most + 1} characters, and at most {most}" in error.message
    async with serving(FakeEngine(), max_characters=most) as handler:
        assert await speak(handler, SpeechRequest("a" * most, "alloy", speed=4))


@pytest.mark.anyio
async def test_a_text_that_cannot_be_pronounced_is_refused() -> None:
    error = await refusal(SpeechRequest("!!! 😀", "alloy"))
    assert error.param == "input"
    assert "pronounced" in error.message


@pytest.mark.anyio
@pytest.mark.parametrize(("text", "message"), [("unreadable", "cannot be read"), ("Mumble", "cannot be said")])
async def test_what_the_engine_refuses_reaches_the_caller(text: str, message: str) -> None:
    assert (await refusal(SpeechRequest(text, "alloy"))).message == message


@pytest.mark.anyio
async def test_a_sentence_that_fails_ends_its_own_request_and_no_other() -> None:
    engine = FakeEngine(batches=True)
    async with serving(engine) as handler:
        async with asyncio.TaskGroup() as callers:
            good = callers.create_task(speak(handler, SpeechRequest("One. Two", "alloy", "pcm")))
            with pytest.raises(EngineFailed):
                await speak(handler, SpeechRequest("One. Poison. Three", "alloy", "pcm"))
    assert len(good.result()) == 2 * 48_000


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
async def test_a_text_that_would_take_too_long_is_refused_before_anything_is_spoken() -> None:
    error = await refusal(SpeechRequest("a" * 4000, "alloy", speed=0.5))
    assert error.param == "input"
    assert "about 133 minutes to speak, and at most 30" in error.message


@pytest.mark.anyio
async def test_a_text_that_takes_longer_than_was_reckoned_is_cut_at_twice_the_limit() -> None:
    async with serving(FakeEngine(), max_characters=13) as handler:  # 5.7 seconds
        with pytest.raises(InvalidRequest, match="too long"):
            async with await handler.open(SpeechRequest("a. b. c. d. e", "alloy", "pcm", 4), Caller()) as synthesis:
                await anext(aiter(synthesis))
                synthesis._max_seconds = 2.5
                _ = [chunk async for chunk in synthesis]


@pytest.mark.anyio
async def test_a_caller_who_leaves_ends_the_synthesis_after_the_sentence() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        async with anyio.create_task_group() as callers:
            await occupy(handler, engine, callers, LONG)
            callers.cancel_scope.cancel()
        engine.latch.set()
        await speak(handler, SpeechRequest("Next", "alloy"))
        assert handler.stats().batches.waiting_cost == 0
    assert engine.spoken == ["Sentence 0", "Sentence 1", "Next"]


@pytest.mark.anyio
async def test_the_queue_is_counted_in_the_characters_that_are_still_to_be_spoken() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_cost=10)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers, "One. Two. 345. 67890")
        assert handler.stats().batches.waiting_cost == 8
        with pytest.raises(QueueFull):
            await speak(handler, SpeechRequest("abc", "alloy"))
        engine.latch.set()
    assert engine.spoken == ["One", "Two", "345", "67890"]


@pytest.mark.anyio
async def test_what_is_admitted_is_spoken_to_its_end_however_many_come() -> None:
    engine = FakeEngine()
    async with serving(engine, Limits(max_queue_size=2)) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers, LONG)
        callers.start_soon(speak, handler, SpeechRequest("Second", "alloy"))
        await until(lambda: handler._batcher.waiting > 0)
        with pytest.raises(QueueFull):
            await speak(handler, SpeechRequest("Third", "alloy"))
        engine.latch.set()
    assert len(engine.spoken) == 21


@pytest.mark.anyio
async def test_a_deadline_ends_the_synthesis() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler:
        with pytest.raises(DeadlineExceeded):
            await speak(handler, SpeechRequest(LONG, "alloy"), Caller(deadline=-math.inf))
    assert engine.spoken == []


@pytest.mark.anyio
async def test_seconds_that_were_spoken_are_counted() -> None:
    async with serving(FakeEngine()) as handler:
        await speak(handler, SpeechRequest("One. Two", "alloy", "wav"))
        await speak(handler, SpeechRequest("Three", "alloy", "wav"))
        with pytest.raises(InvalidRequest):
            await speak(handler, SpeechRequest("Mumble", "alloy"))
        stats = handler.stats()
    assert stats.audio_seconds == pytest.approx(3, abs=0.01)
    ended = {outcome for outcome, count in stats.batches.outcomes.items() if count}
    assert ended == {Outcome.COMPLETED, Outcome.REJECTED}


@pytest.mark.anyio
async def test_a_draining_handler_refuses_new_texts_and_finishes_those_in_hand() -> None:
    engine = FakeEngine()
    async with serving(engine) as handler, anyio.create_task_group() as callers:
        await occupy(handler, engine, callers, LONG)
        callers.start_soon(handler.drain)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ShuttingDown):
            await speak(handler, SpeechRequest("Hello", "alloy"))
        engine.latch.set()
    assert len(engine.spoken) == 20


@pytest.mark.anyio
async def test_the_description_names_the_voices_once_they_are_known() -> None:
    handler = SynthesisHandler(SPEC, Path, load_engine=lambda spec, folder: FakeEngine())
    facts = {
        "capabilities": ["speech"],
        "formats": ["mp3", "opus", "aac", "flac", "wav", "pcm"],
        "max_characters": 4096,
    }
    assert handler.describe() == facts
    await handler.load()
    assert handler.describe() == {
        **facts,
        "voices": {"alloy": "heart", "heart": "heart"},
        "device": "cpu",
        "dtype": "int8",
    }


@pytest.mark.anyio
async def test_alphabets_that_were_transliterated_are_told() -> None:
    async with serving(FakeEngine()) as handler:
        synthesis = await handler.open(SpeechRequest("α and β", "alloy"), Caller())
    assert isinstance(synthesis, Synthesis)
    assert synthesis.transliterated == {"greek"}


def test_an_engine_that_does_not_speak_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="the engine faster-whisper does not speak"):
        load_engine(replace(SPEC, engine="faster-whisper"), tmp_path)


def test_speakers_of_whom_nothing_is_known_share_the_names_evenly() -> None:
    voices = shared_out(["a", "b"])
    assert list(voices.values()).count("a") == 8
    assert (voices["alloy"], voices["ash"], voices["a"]) == ("a", "b", "a")


def test_every_openai_voice_is_spoken_by_the_only_local_one() -> None:
    voices = voices_in_force(["heart"])
    assert len(PREFERRED) == 13
    assert voices == dict.fromkeys([*PREFERRED, "heart"], "heart")


def test_openai_voices_prefer_the_local_voice_that_sounds_like_them() -> None:
    voices = voices_in_force(["heart", "emma", "fable", "fenrir", "kore"])
    assert (voices["onyx"], voices["sage"], voices["fable"], voices["emma"]) == ("fenrir", "emma", "fable", "emma")
