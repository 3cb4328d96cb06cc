"""One file's transcription, around a batcher that answers when the test says so."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from batching.batcher import Batcher
from batching.job import Caller, Job
from handlers.audio.decode import SAMPLE_RATE
from handlers.transcription.engine import Heard, Options, Window
from handlers.transcription.transcription import FileTranscription
from handlers.transcription.vad import Span, Speech
from handlers.transcription.windows import Cut
from tests.clock import MANUAL_CLOCK, settle
from tests.handlers.speech_models import say_length

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


class Answers:
    """Stands in for a Batcher. submitted: each window with the future that answers it."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Window, asyncio.Future[Heard]]] = []

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        yield

    async def submit(self, job: Job[Window, Heard]) -> Heard:
        future: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self.submitted.append((job.work, future))
        return await future

    def answer(self, number: int) -> None:
        window, future = self.submitted[number]
        heard = say_length(window)
        assert isinstance(heard, Heard)
        future.set_result(heard)


class Seconds:
    """A Reading of one window a second. closed: whether it was."""

    duration = 0.0

    def __init__(self, count: int) -> None:
        self._left = count
        self.closed = False

    async def measure(self) -> float:
        return float(self._left)

    async def read(self, requests: Sequence[str] = ()) -> Sequence[Cut] | None:
        if not self._left:
            return None
        self._left -= 1
        self.duration += 1
        return [Cut([Speech(Span(0, SAMPLE_RATE), np.zeros(SAMPLE_RATE, np.float32))])]

    async def close(self) -> None:
        self.closed = True


def transcription(
    reading: Seconds, batcher: Answers, language: str | None = "de", detects_language: bool = False
) -> FileTranscription:
    return FileTranscription(
        reading,
        Options(language=language),
        Caller(),
        batcher=cast(Batcher[Window, Heard], cast(Any, batcher)),
        detects_language=detects_language,
        in_flight=2,
        text_tokens=0,
        on_transcribed=lambda job: None,
        on_end=lambda: None,
    )


async def texts(opened: FileTranscription) -> list[str]:
    async with opened:
        return [segment.text async for segment in opened]


async def test_a_reader_who_leaves_just_as_the_answer_comes_leaves_quietly() -> None:
    reading, batcher = Seconds(1), Answers()
    reader = asyncio.create_task(texts(transcription(reading, batcher)))
    await settle()
    reader.cancel()
    batcher.answer(0)
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert reading.closed


async def test_while_the_language_is_to_be_detected_the_others_wait_for_the_first() -> None:
    batcher = Answers()
    reader = asyncio.create_task(texts(transcription(Seconds(3), batcher, None, detects_language=True)))
    await settle()
    assert len(batcher.submitted) == 1
    batcher.answer(0)
    await settle()
    assert [window.options.language for window, _ in batcher.submitted] == [None, "de", "de"]
    batcher.answer(1)
    batcher.answer(2)
    assert await reader == [" 1", " 1", " 1"]


async def test_where_no_language_is_told_the_others_do_not_wait() -> None:
    batcher = Answers()
    reader = asyncio.create_task(texts(transcription(Seconds(3), batcher, None)))
    await settle()
    assert len(batcher.submitted) == 2
    for number in range(3):
        await settle()
        batcher.answer(number)
    assert await reader == [" 1", " 1", " 1"]
