"""Transcription: an audio file in, its text out, one file at a time."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from batching.batcher import Batcher
from batching.job import Caller, CancelToken, Job
from batching.worker import Worker
from handlers.audio.decode import decode, measure_seconds
from handlers.audio.waveform import Waveform
from handlers.devices import is_out_of_memory, release_memory
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats
from handlers.transcription.types import Segment, Transcript, TranscriptionRequest

_MAX_PROMPT = 890  # characters: four of English to each of the 223 tokens


class Engine(Protocol):
    """languages: ISO-639-1 codes. device, dtype: where it runs and in which number format."""

    languages: Sequence[str]
    device: str
    dtype: str

    def transcribe(self, waveform: Waveform, request: TranscriptionRequest, cancel: CancelToken) -> Transcript:
        """The text of 16 kHz audio. Once cancelled, whatever it returns is thrown away."""


@dataclass(frozen=True, slots=True)
class _Recording:
    request: TranscriptionRequest
    cancel: CancelToken


class WhisperHandler:
    """A Whisper model. Its queue is counted in seconds of audio.

    max_audio_seconds: the longest recording that is taken.
    load_engine: opens the model files in a folder.
    """

    _engine: Engine

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[str], Path],
        *,
        max_audio_seconds: float = 3600,
        load_engine: Callable[[ModelSpec, Path], Engine] | None = None,
    ) -> None:
        self.spec = spec
        self._open_source = open_source
        self._max_audio_seconds = max_audio_seconds
        self._load_engine = load_engine or _load_whisper
        self._audio_seconds = 0.0
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id} files")
        # The engine takes one file after another: in a larger batch the first would wait for the last.
        self._batcher: Batcher[_Recording, Transcript] = Batcher(
            spec.id,
            self._transcribe_all,
            replace(spec.limits, max_batch_size=1),
            worker=self._worker,
            is_out_of_memory=is_out_of_memory,
            release_memory=release_memory,
        )

    async def load(self) -> None:
        await self._worker.run(self._load)

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        facts = {"capabilities": ["transcription"], "max_audio_seconds": self._max_audio_seconds}
        if not hasattr(self, "_engine"):
            return facts
        engine = self._engine
        return {**facts, "languages": list(engine.languages), "device": engine.device, "dtype": engine.dtype}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), audio_seconds=self._audio_seconds)

    async def open(self, request: TranscriptionRequest, caller: Caller) -> "_WholeFile":
        if request.task == "translate":
            raise InvalidRequest(f"`{self.spec.id}` cannot translate. Use another model.", "model", "invalid_value")
        return _WholeFile(self, request, caller)

    async def transcribe(self, request: TranscriptionRequest, caller: Caller) -> Transcript:
        """Raises InvalidRequest (UnsupportedMedia, TooLarge) before the file waits for its turn, or QueueFull."""
        self._refuse_unknown_language(request.language)
        _refuse_long_prompt(request.prompt)
        with self._batcher.place(caller):
            seconds = await self._preparation.run(self._measure, request.file)
        cancel = CancelToken()
        recording = _Recording(request, cancel)
        transcript = await self._batcher.submit(Job(recording, caller, cost=max(1, ceil(seconds)), cancel=cancel))
        self._audio_seconds += transcript.duration
        return transcript

    def _refuse_unknown_language(self, language: str | None) -> None:
        languages = self._engine.languages
        if language is None or language in languages:
            return
        if len(languages) == 1:
            known = f"only knows `{languages[0]}`: send that, leave `language` out,"
        else:
            known = "knows other ISO-639-1 codes, such as `en` or `de`: send one, leave `language` out to detect it,"
        raise InvalidRequest(
            f"`{self.spec.id}` does not know the language {language!r}. It {known} or use another model.",
            "language",
            "invalid_value",
        )

    def _load(self) -> None:
        self._engine = self._load_engine(self.spec, self._open_source(self.spec.source))

    def _measure(self, file: BinaryIO) -> float:
        return measure_seconds(file, max_seconds=self._max_audio_seconds)

    def _transcribe_all(self, recordings: Sequence[_Recording]) -> Sequence[Transcript | Exception]:
        return [self._transcribe(recording) for recording in recordings]

    def _transcribe(self, recording: _Recording) -> Transcript | InvalidRequest:
        try:
            waveform = decode(recording.request.file, max_seconds=self._max_audio_seconds)
        except InvalidRequest as refusal:
            return refusal
        return self._engine.transcribe(waveform, recording.request, recording.cancel)


class _WholeFile:
    """One segment, with the whole text."""

    def __init__(self, handler: WhisperHandler, request: TranscriptionRequest, caller: Caller) -> None:
        self._handler = handler
        self._request = request
        self._caller = caller
        self._transcript = Transcript("", None, 0.0)

    async def __aenter__(self) -> "_WholeFile":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancelling the iteration has stopped the engine."""

    async def __aiter__(self) -> AsyncIterator[Segment]:
        whole = await self._handler.transcribe(self._request, self._caller)
        segment = Segment(0, 0, 0.0, whole.duration, whole.text, (), 0.0, 0.0, 0.0, 0.0)
        self._transcript = replace(whole, segments=(segment,) if whole.text else ())
        if whole.text:
            yield segment

    def transcript(self) -> Transcript:
        return self._transcript


def _refuse_long_prompt(prompt: str | None) -> None:
    """Whisper looks at the last 223 tokens only: a glossary at the beginning would be lost without a word."""
    if prompt is not None and len(prompt) > _MAX_PROMPT:
        raise InvalidRequest(
            f"The prompt has {len(prompt)} characters, and at most {_MAX_PROMPT} are taken. Send fewer words.",
            "prompt",
            "string_above_max_length",
        )


def _load_whisper(spec: ModelSpec, folder: Path) -> Engine:
    from handlers.transcription.openmp import import_ctranslate2

    import_ctranslate2()
    from handlers.transcription.faster_whisper import load

    return load(spec, folder)
