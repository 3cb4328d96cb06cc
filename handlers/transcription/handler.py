"""Transcription: an audio file in, its segments out, over batches of windows that all callers share."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import anyio

from batching.batcher import Batcher
from batching.job import Caller, Job
from batching.limits import Limits
from batching.worker import Worker
from handlers.devices import is_out_of_memory, release_memory
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats
from handlers.transcription.admission import Admission, Place
from handlers.transcription.engine import Engine, EngineFacts, Heard, Options, Window
from handlers.transcription.files import Files, FilesInThread, Reading
from handlers.transcription.isolated import IsolatedEngine, IsolatedFiles
from handlers.transcription.loading import is_isolated, load_engine
from handlers.transcription.transcription import FileTranscription
from handlers.transcription.types import TranscriptionRequest
from handlers.transcription.vad import VoiceModel, load_voice_model

# Windows are 30 s long, and padding is part of them.
_MOST_PADDING_MS = 5_000
_TURN_SECONDS = 30


class WhisperHandler:
    """A speech model. Its queue is counted in files and in seconds of audio, its batches in windows.

    max_audio_seconds: the longest recording that is taken.
    load_engine: opens the model files in a folder. load_voices: opens the network that finds speech.
    isolated_engine, isolated_files: make what does both in processes of its own, where the model is isolated.
    """

    _facts: EngineFacts
    _files: Files
    _batcher: Batcher[Window, Heard]

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[str], Path],
        *,
        max_audio_seconds: float = 3600,
        load_engine: Callable[[ModelSpec, Path], Engine] = load_engine,
        load_voices: Callable[[], VoiceModel] = load_voice_model,
        isolated_engine: Callable[[ModelSpec, Path], IsolatedEngine] = IsolatedEngine,
        isolated_files: Callable[[ModelSpec, Path, float], IsolatedFiles] = IsolatedFiles,
    ) -> None:
        self.spec = spec
        self._open_source = open_source
        self._max_audio_seconds = max_audio_seconds
        self._load_engine = load_engine
        self._load_voices = load_voices
        self._isolated_engine = isolated_engine
        self._isolated_files = isolated_files
        self._processes: Sequence[IsolatedEngine | IsolatedFiles] = ()
        self._audio_seconds = 0.0
        self._worker = Worker(spec.id)
        self._admission = Admission(spec.id, spec.limits)
        self._left = anyio.Event()

    async def load(self) -> None:
        folder = await self._worker.run(self._open_source, self.spec.source)
        # The bounds are those of the files; a window of an admitted one is never refused. Files take turns.
        limits = replace(
            self.spec.limits, max_queue_size=sys.maxsize, max_queue_cost=sys.maxsize, max_turn_cost=_TURN_SECONDS
        )
        if is_isolated(self.spec, folder):
            await self._load_isolated(folder, limits)
        else:
            await self._load_here(folder, limits)

    async def run(self) -> None:
        try:
            await self._batcher.run()
        finally:
            await self._end_processes()

    async def _load_here(self, folder: Path, limits: Limits) -> None:
        engine = await self._worker.run(self._load_engine, self.spec, folder)
        voices = await self._worker.run(self._load_voices)
        self._facts = engine.facts
        self._files = FilesInThread(self.spec.id, engine, voices, max_seconds=self._max_audio_seconds)
        self._batcher = Batcher(
            self.spec.id,
            engine.transcribe,
            limits,
            worker=self._worker,
            is_out_of_memory=is_out_of_memory,
            release_memory=release_memory,
        )

    async def _load_isolated(self, folder: Path, limits: Limits) -> None:
        engine = self._isolated_engine(self.spec, folder)
        files = self._isolated_files(self.spec, folder, self._max_audio_seconds)
        self._processes = (engine, files)
        try:
            await self._start_processes()
        except BaseException:
            await self._end_processes()
            raise
        self._facts = engine.facts
        self._files = files
        self._batcher = Batcher(self.spec.id, engine.transcribe, limits, worker=None)

    async def _start_processes(self) -> None:
        """Both at once. Raises ModelLoadError."""
        try:
            async with anyio.create_task_group() as starting:
                for process in self._processes:
                    starting.start_soon(process.start)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _end_processes(self) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as ending:
                for process in self._processes:
                    ending.start_soon(process.aclose)

    async def drain(self) -> None:
        self._admission.closed = True
        while self._admission.files:
            self._left = anyio.Event()
            await self._left.wait()
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        facts = {"capabilities": ["transcription"], "max_audio_seconds": self._max_audio_seconds}
        if not hasattr(self, "_facts"):
            return facts
        return {**facts, **_described(self._facts), "isolation": "process" if self._processes else "none"}

    def stats(self) -> ModelStats:
        """What waits is in seconds of audio, read or not."""
        batches = self._batcher.stats()
        waiting = max(batches.waiting_cost, ceil(self._admission.seconds))
        return ModelStats(
            replace(batches, waiting_cost=waiting, refused=batches.refused + self._admission.refused),
            audio_seconds=self._audio_seconds,
            processes={process.role: process.stats() for process in self._processes},
        )

    async def open(self, request: TranscriptionRequest, caller: Caller) -> FileTranscription:
        """As TranscriptionHandler.open. The file is measured, and its first half minute read."""
        options = self._options(request)
        self._refuse_impossible(request)
        place = self._admission.admit()
        try:
            with self._batcher.place(caller):
                text_tokens = await self._count_prompt(request)
                reading = await self._files.open(request.file, request.voice_activity, self._facts.window_seconds)
            try:
                return await self._begin(reading, options, caller, place, text_tokens)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await reading.close()
                raise
        except BaseException:
            self._leave(place)
            raise

    async def _begin(
        self, reading: Reading, options: Options, caller: Caller, place: Place, text_tokens: int
    ) -> FileTranscription:
        with self._batcher.place(caller):
            seconds = await reading.measure()
        place.measured(seconds)

        def transcribed(job: Job[Window, Heard]) -> None:
            place.transcribed(job.work.seconds)
            self._record_pace(job)

        def end() -> None:
            self._audio_seconds += reading.duration
            self._leave(place)

        transcription = FileTranscription(
            reading,
            options,
            caller,
            batcher=self._batcher,
            detects_language=options.language is None and bool(self._facts.languages),
            in_flight=self.spec.limits.max_batch_size,
            text_tokens=text_tokens,
            on_transcribed=transcribed,
            on_end=end,
        )
        await transcription.read()
        return transcription

    def _leave(self, place: Place) -> None:
        place.release()
        self._left.set()

    def _record_pace(self, job: Job[Window, Heard]) -> None:
        timing = job.timing
        if timing.started is not None and timing.ended is not None:
            self._admission.pace.record(job.cost * timing.batch_size, timing.ended - timing.started)

    def _options(self, request: TranscriptionRequest) -> Options:
        """Where a single language is left, none need be detected."""
        known = self._facts.languages
        if request.language is not None:
            _refuse_unknown(self.spec.id, request.language, known, "language")
        for language in request.languages:
            _refuse_unknown(self.spec.id, language, known, "languages")
        possible = request.languages or known
        return Options(
            language=request.language or (possible[0] if len(possible) == 1 else None),
            languages=request.languages,
            task=request.task,
            prompt=request.prompt,
            keywords=request.keywords,
            temperature=request.temperature,
            word_timestamps=request.word_timestamps,
            logprobs=request.logprobs,
        )

    def _refuse_impossible(self, request: TranscriptionRequest) -> None:
        facts, model = self._facts, f"`{self.spec.id}`"
        if request.task == "translate" and not facts.translates:
            raise InvalidRequest(
                f"{model} only transcribes. Translate with a multilingual Whisper model, such as `whisper-small`, "
                "or ask for a transcription.",
                "model",
                "unsupported_value",
            )
        if request.word_timestamps and not facts.word_timestamps:
            raise InvalidRequest(
                f"{model} cannot tell when each word was said. Ask for `segment` timestamps only.",
                "timestamp_granularities",
                "unsupported_value",
            )
        if request.logprobs and not facts.logprobs:
            raise InvalidRequest(
                f"{model} does not tell how probable its tokens are. Leave `logprobs` out of `include`.",
                "include",
                "unsupported_value",
            )
        if request.temperature and not facts.temperatures:
            raise InvalidRequest(
                f"{model} always takes the most probable text. Leave `temperature` out, or send 0.",
                "temperature",
                "unsupported_value",
            )
        if request.voice_activity.prefix_padding_ms > _MOST_PADDING_MS:
            raise InvalidRequest(
                f"`prefix_padding_ms` is at most {_MOST_PADDING_MS}. Send a smaller one.",
                "chunking_strategy",
                "invalid_value",
            )

    async def _count_prompt(self, request: TranscriptionRequest) -> int:
        """Whisper looks at the last tokens only: names at the beginning would be lost without a word."""
        count, most = await self._files.count_prompt(request.prompt, request.keywords), self._facts.max_prompt_tokens
        if count and not most:
            raise InvalidRequest(
                f"`{self.spec.id}` takes no earlier text and no names. Leave `prompt` and `keywords` out, or use "
                "a Whisper model.",
                "prompt" if request.prompt else "keywords",
                "unsupported_value",
            )
        if count > most:
            param = "prompt" if request.prompt else "keywords"
            raise InvalidRequest(
                f"The prompt and the keywords have {count} tokens, and at most {most} are taken. Send fewer words.",
                param,
                "string_above_max_length",
            )
        return count


def _refuse_unknown(model: str, language: str, known: Sequence[str], param: str) -> None:
    if language in known:
        return
    if not known:
        raise InvalidRequest(
            f"`{model}` hears what it was trained on, and cannot be told a language. Leave `{param}` out, "
            "or use a multilingual Whisper model.",
            param,
            "unsupported_value",
        )
    if len(known) == 1:
        way_out = f"only knows `{known[0]}`: send that, leave `{param}` out,"
    else:
        way_out = f"knows other ISO-639-1 codes, such as `en` or `de`: send one, leave `{param}` out to detect it,"
    raise InvalidRequest(
        f"`{model}` does not know the language {language!r}. It {way_out} or use another model.", param, "invalid_value"
    )


def _described(facts: EngineFacts) -> Mapping[str, Any]:
    return {
        "languages": list(facts.languages),
        "translates": facts.translates,
        "word_timestamps": facts.word_timestamps,
        "logprobs": facts.logprobs,
        "temperatures": facts.temperatures,
        "device": facts.device,
        "dtype": facts.dtype,
    }
