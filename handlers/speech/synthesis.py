"""One text being spoken: its sentences in order, encoded as they come, never far ahead of who listens."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Self

import anyio

from batching.batcher import Batcher
from batching.job import Caller, Job
from batching.loop import Hold
from batching.worker import Worker
from handlers.audio.encode import MEDIA_TYPES, Encoder
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest
from handlers.speech.types import Script, Sentence, SpeechRequest

# What one chunk has at most, so that even who plays while receiving takes each in time; a multiple of 3, for base64.
_CHUNK_BYTES = 48 * 1024

# As OpenAI's own models reckon, one for each twentieth of a second.
_TOKENS_PER_SECOND = 20


class Synthesis:
    """Leaving the context ends the synthesis at the next sentence; iterating yields encoded audio, all of it the file.

    The next sentences are computed while one is encoded and sent: the first one alone so that it comes soon, then
    `batch_size` at a time, until more than so many wait to be sent. Whoever takes his time holds up only his own.

    media_type: of the audio. voice: the local one that speaks. input_tokens: the characters of the text.
    transliterated: alphabets that were written in Latin letters for the voice.
    max_seconds: of audio; above that InvalidRequest is raised. on_spoken: told the seconds of each sentence.
    """

    def __init__(
        self,
        request: SpeechRequest,
        voice: str,
        script: Script,
        caller: Caller,
        batcher: Batcher[Sentence, Waveform],
        *,
        encoding: Worker,
        sample_rate: int,
        batch_size: int,
        max_seconds: float,
        on_spoken: Callable[[float], None],
    ) -> None:
        self.media_type = MEDIA_TYPES[request.format]
        self.voice = voice
        self.transliterated = script.transliterated
        self.input_tokens = len(request.text)
        self._format = request.format
        self._waiting = deque(Sentence(text, voice, request.speed) for text in script.sentences)
        self._caller = caller
        self._batcher = batcher
        self._encoding = encoding
        self._sample_rate = sample_rate
        self._batch_size = batch_size
        self._max_seconds = max_seconds
        self._on_spoken = on_spoken
        self._spoken: deque[asyncio.Task[Waveform]] = deque()
        self._context = ExitStack()
        self._encoder: Encoder | None = None

    @property
    def output_tokens(self) -> int:
        """Twentieths of a second of what was spoken so far, the last one whole."""
        return math.ceil(self._seconds * _TOKENS_PER_SECOND)

    async def __aenter__(self) -> Self:
        """Raises QueueFull or ShuttingDown."""
        self._hold: Hold = self._context.enter_context(self._batcher.hold(sum(len(it.text) for it in self._waiting)))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._waiting.clear()
        self._context.close()
        for task in self._spoken:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*self._spoken, return_exceptions=True)
            if self._encoder is not None:
                await self._encoding.run(self._encoder.close)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises what ends the synthesis early, such as DeadlineExceeded or EngineFailed."""
        self._encoder = encoder = Encoder(self._format, self._sample_rate)
        async for waveform in self._waveforms():
            self._on_spoken(len(waveform) / self._sample_rate)
            encoded = await self._encoding.run(encoder.write, waveform)
            if encoder.seconds > self._max_seconds:
                raise InvalidRequest("The text takes too long to speak. Send it in parts, or faster.", "input")
            for chunk in _chunks(encoded):
                yield chunk
        for chunk in _chunks(await self._encoding.run(encoder.finish)):
            yield chunk

    @property
    def _seconds(self) -> float:
        return self._encoder.seconds if self._encoder is not None else 0.0

    async def _waveforms(self) -> AsyncIterator[Waveform]:
        self._start(1)
        while self._spoken:
            waveform = await self._spoken[0]
            self._spoken.popleft()
            self._start_next()
            yield waveform

    def _start_next(self) -> None:
        """Called when a sentence was made, and when one was taken to be sent."""
        if not all(task.done() for task in self._spoken):
            return
        if not self._waiting:
            self._context.close()  # all is spoken, so the room is free for others while this is sent
        elif len(self._spoken) <= self._batch_size:
            self._start(self._batch_size)

    def _start(self, count: int) -> None:
        """Let the batcher have the next sentences."""
        for sentence in [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]:
            job: Job[Sentence, Waveform] = Job(sentence, self._caller, cost=len(sentence.text))
            task = asyncio.create_task(self._batcher.submit(job, self._hold))
            task.add_done_callback(lambda task: self._start_next() if _succeeded(task) else None)
            self._spoken.append(task)


def _succeeded(task: asyncio.Task[Waveform]) -> bool:
    return not task.cancelled() and task.exception() is None


def _chunks(encoded: bytes) -> Iterator[bytes]:
    for start in range(0, len(encoded), _CHUNK_BYTES):
        yield encoded[start : start + _CHUNK_BYTES]
