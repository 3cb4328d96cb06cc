"""Words of whole files through the handler, which share batches, against faster-whisper on one file's windows alone."""

from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from faster_whisper import WhisperModel

from batching.job import Caller
from handlers.audio.decode import decode
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from handlers.transcription.faster_whisper import load
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.types import Transcript, TranscriptionRequest, VoiceActivity, Word
from handlers.transcription.vad import load_voice_model
from handlers.transcription.windows import Cut, Windows

NAMES = ("two_cities.wav", "beckett.wav")

pytestmark = [pytest.mark.models, pytest.mark.anyio]


async def transcribed(handler: WhisperHandler, file: bytes) -> Transcript:
    request = TranscriptionRequest(BytesIO(file), word_timestamps=True)
    async with await handler.open(request, Caller()) as opened:
        async for _ in opened:
            pass
        return opened.transcript()


async def together(handler: WhisperHandler, files: list[bytes]) -> list[Transcript]:
    answers: dict[int, Transcript] = {}

    async def answer(i: int) -> None:
        answers[i] = await transcribed(handler, files[i])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        async with anyio.create_task_group() as callers:
            for i in range(len(files)):
                callers.start_soon(answer, i)
        tasks.cancel_scope.cancel()
    return [answers[i] for i in range(len(files))]


def cuts_of(file: bytes) -> list[Cut]:
    windows = Windows(iter([decode(BytesIO(file), max_seconds=60)]), load_voice_model(), VoiceActivity(), 30)
    cuts: list[Cut] = []
    while (some := windows.read()) is not None:
        cuts += some
    return cuts


def by_library(model: WhisperModel, cuts: list[Cut]) -> list[Word]:
    """Each window as a recording of its own."""
    words: list[Word] = []
    for cut in cuts:
        segments, _ = model.transcribe(cut.samples, beam_size=1, word_timestamps=True, condition_on_previous_text=False)
        for word in (word for segment in segments for word in segment.words or ()):
            stretch = cut.stretch((word.start + word.end) / 2)
            start, end = cut.file_time(word.start, stretch), cut.file_time(word.end, stretch)
            words.append(Word(word.word, start, end, word.probability))
    return words


async def test_words_of_whole_files_are_timed_as_by_faster_whisper_alone(models_dir: Path) -> None:
    files = [(fetch(SPEECH_SAMPLES, models_dir) / name).read_bytes() for name in NAMES]
    handler = WhisperHandler(
        replace(TRANSCRIPTION, device="cpu", isolation="none"),
        lambda source: fetch(source, models_dir),
        load_engine=load,
    )
    await handler.load()
    model = WhisperModel(str(fetch(TRANSCRIPTION.source, models_dir)), device="cpu", compute_type="int8")
    for file, transcript in zip(files, await together(handler, files), strict=True):
        ours = [word for segment in transcript.segments for word in segment.words]
        theirs = by_library(model, cuts_of(file))
        assert [word.word for word in ours] == [word.word for word in theirs]
        for word, other in zip(ours, theirs, strict=True):
            assert (word.start, word.end) == pytest.approx((other.start, other.end), abs=0.02)
        assert all(one.start <= one.end <= other.start for one, other in pairwise(ours))
        for segment in transcript.segments:
            assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)
