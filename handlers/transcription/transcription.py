"""One file's transcription: windows are read, transcribed a few at a time, and handed on in order."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Self

import anyio

from batching.batcher import Batcher
from batching.job import Caller, Job
from handlers.transcription.engine import Heard, Options, Window
from handlers.transcription.files import Reading
from handlers.transcription.types import Segment, Transcript
from handlers.transcription.windows import Cut

_FRAMES_A_SECOND = 100


class FileTranscription:
    """As handlers.base.Transcription.

    reading: of the file. detects_language: whether the first window tells the language of the others, which wait.
    in_flight: how many windows the batcher may have. text_tokens: of prompt and keywords.
    on_transcribed: called with the job of each window that has its answer. on_end: called once, in any outcome.
    """

    def __init__(
        self,
        reading: Reading,
        options: Options,
        caller: Caller,
        *,
        batcher: Batcher[Window, Heard],
        detects_language: bool,
        in_flight: int,
        text_tokens: int,
        on_transcribed: Callable[[Job[Window, Heard]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._reading = reading
        self._options = options
        self._caller = caller
        self._batcher = batcher
        self._detects_language = detects_language
        self._slots = asyncio.Semaphore(in_flight)
        # As many again are read meanwhile, so that the next batch is full when this one ends.
        self._most_read = 2 * in_flight
        self._on_transcribed = on_transcribed
        self._on_end = on_end
        self._tasks = anyio.create_task_group()
        self._read: deque[tuple[Cut, asyncio.Future[Heard]]] = deque()
        self._unsent: deque[Cut] = deque()
        self._submitted: set[Job[Window, Heard]] = set()
        self._at_end = False
        self._segments: list[Segment] = []
        self._transcript = Transcript("", None, 0.0, text_tokens=text_tokens)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._close()

    async def _close(self) -> None:
        """Whoever opened the file closes it next: nothing may read it then."""
        try:
            with anyio.CancelScope(shield=True):
                await self._reading.close()
        finally:
            self._on_end()

    def __aiter__(self) -> AsyncIterator[Segment]:
        return self._iterate()

    def transcript(self) -> Transcript:
        """Of the segments iterated so far."""
        text = "".join(segment.text for segment in self._segments).strip()
        return replace(self._transcript, text=text, duration=self._reading.duration, segments=tuple(self._segments))

    async def read(self) -> None:
        """Read on, by one turn. Raises InvalidRequest, DeadlineExceeded."""
        with self._batcher.place(self._caller):
            cuts = await self._reading.read([self._caller.request_id])
        if cuts is None:
            self._at_end = True
        else:
            self._unsent += cuts

    async def _iterate(self) -> AsyncGenerator[Segment, None]:
        while True:
            await self._fill()
            if not self._read:
                return
            cut, answer = self._read.popleft()
            heard = await answer
            self._count(heard)
            for segment in heard.segments:
                self._segments.append(_in_file(segment, cut, len(self._segments)))
                yield self._segments[-1]

    async def _fill(self) -> None:
        """Have enough windows under way, unless the next answer is there: reading on would hold it back.

        While the language is to be detected, the first one is enough: it tells it.
        """
        while len(self._read) < self._most_read:
            if self._read and (self._detects_language or self._read[0][1].done()):
                return
            if self._unsent:
                self._send(self._unsent.popleft())
            elif self._at_end:
                return
            else:
                await self.read()

    def _send(self, cut: Cut) -> None:
        answer: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self._read.append((cut, answer))
        self._tasks.start_soon(self._transcribe, Window(cut.samples, self._options), answer)

    async def _transcribe(self, window: Window, answer: asyncio.Future[Heard]) -> None:
        job: Job[Window, Heard] = Job(window, self._caller, cost=max(1, math.ceil(window.seconds)))
        try:
            async with self._slots:
                job.ahead = sum(other.cost for other in self._submitted if other.timing.started is None)
                self._submitted.add(job)
                try:
                    heard = await self._batcher.submit(job)
                finally:
                    self._submitted.discard(job)
        except Exception as error:  # noqa: BLE001 - the reader's, who waits for this window
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # seen: a reader who leaves earlier never asks
            return
        self._on_transcribed(job)
        if not answer.done():  # the reader may have left at the same moment
            answer.set_result(heard)

    def _count(self, heard: Heard) -> None:
        so_far = self._transcript
        self._transcript = replace(
            so_far,
            language=so_far.language or heard.language,
            audio_tokens=so_far.audio_tokens + heard.audio_tokens,
            output_tokens=so_far.output_tokens + heard.output_tokens,
        )
        if self._detects_language and heard.language is not None:
            self._detects_language = False
            self._options = replace(self._options, language=heard.language)


def _in_file(segment: Segment, cut: Cut, id: int) -> Segment:
    """Numbered, and by the file's time. A word lies in one stretch of speech, a segment from its first to its last."""
    words = []
    for word in segment.words:
        stretch = cut.stretch((word.start + word.end) / 2)
        words.append(replace(word, start=cut.file_time(word.start, stretch), end=cut.file_time(word.end, stretch)))
    start = words[0].start if words else cut.file_time(segment.start, cut.stretch(segment.start))
    end = words[-1].end if words else cut.file_time(segment.end, cut.stretch(segment.end, is_end=True))
    return replace(
        segment, id=id, seek=round(cut.start * _FRAMES_A_SECOND), start=start, end=max(start, end), words=tuple(words)
    )
