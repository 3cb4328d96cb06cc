"""Speech: text in, encoded audio out, sentence by sentence as it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batching.batcher import Batcher
from batching.job import Caller
from batching.worker import Worker
from handlers.audio.encode import MEDIA_TYPES
from handlers.audio.waveform import Waveform
from handlers.devices import is_out_of_memory, release_memory
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec
from handlers.speech.engine import Engine
from handlers.speech.loading import load_engine as load_engine_of
from handlers.speech.synthesis import Synthesis
from handlers.speech.types import MAX_CHARACTERS, Script, Sentence, SpeechRequest
from handlers.stats import ModelStats

MIN_SPEED, MAX_SPEED = 0.25, 4.0

# A text of 4,096 characters takes about five minutes, read as slowly as can be twenty; only digits would take longer.
_SECONDS_PER_CHARACTER = 1800 / 4096

# Sentences of one request that are computed together, where the engine gains by that.
_MOST_TOGETHER = 8


class SynthesisHandler:
    """A set of voices. Its queue is counted in characters, and its jobs are sentences.

    max_characters: of a text. load_engine: opens the model files in a folder.
    """

    _engine: Engine

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[str], Path],
        *,
        max_characters: int = MAX_CHARACTERS,
        load_engine: Callable[[ModelSpec, Path], Engine] = load_engine_of,
    ) -> None:
        self.spec = spec
        self._open_source = open_source
        self._load_engine = load_engine
        self._max_characters = max_characters
        self._audio_seconds = 0.0
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id}-preparation")
        self._encoding = Worker(f"{spec.id}-encoding")
        self._batcher: Batcher[Sentence, Waveform] = Batcher(
            spec.id,
            self._speak,
            spec.limits,
            worker=self._worker,
            is_out_of_memory=is_out_of_memory,
            release_memory=release_memory,
        )

    async def load(self) -> None:
        await self._worker.run(self._load)
        if not self._engine.batches:
            # It reads one sentence after another: in a larger batch the first would wait for the last.
            self._batcher.limits = replace(self.spec.limits, max_batch_size=1)

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        facts = {"capabilities": ["speech"], "formats": list(MEDIA_TYPES), "max_characters": self._max_characters}
        if not hasattr(self, "_engine"):
            return facts
        engine = self._engine
        return {**facts, "voices": dict(engine.voices), "device": engine.device, "dtype": engine.dtype}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), audio_seconds=self._audio_seconds)

    async def open(self, request: SpeechRequest, caller: Caller) -> Synthesis:
        """Admit the request; raises InvalidRequest, QueueFull or ShuttingDown before anything is spoken."""
        self._refuse_text(request.text)
        _refuse_options(request)
        voice = self._local_voice(request.voice)
        with self._batcher.place(caller):
            script = await self._preparation.run(self._engine.prepare, request.text, requests=[caller.request_id])
        self._refuse_script(script, request.speed)
        return Synthesis(
            request,
            voice,
            script,
            caller,
            self._batcher,
            encoding=self._encoding,
            sample_rate=self._engine.sample_rate,
            batch_size=min(self._batcher.limits.max_batch_size, _MOST_TOGETHER),
            # What is spoken may take longer than was reckoned, but not without end.
            max_seconds=2 * self._max_seconds,
            on_spoken=self._count,
        )

    @property
    def _max_seconds(self) -> float:
        return self._max_characters * _SECONDS_PER_CHARACTER

    def _count(self, seconds: float) -> None:
        self._audio_seconds += seconds

    def _local_voice(self, name: str) -> str:
        voices = self._engine.voices
        if name not in voices:
            raise InvalidRequest(
                f"There is no voice {name!r}. Take one of: {', '.join(sorted(voices))}.", "voice", "invalid_value"
            )
        return voices[name]

    def _load(self) -> None:
        self._engine = self._load_engine(self.spec, self._open_source(self.spec.source))

    def _speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        return self._engine.speak(sentences)

    def _refuse_text(self, text: str) -> None:
        if not text.strip():
            raise InvalidRequest("There is no text to speak; send some in `input`.", "input")
        if len(text) > self._max_characters:
            raise InvalidRequest(
                f"The text has {len(text)} characters, and at most {self._max_characters} are spoken at once. "
                "Send it in parts and join their audio.",
                "input",
                "string_above_max_length",
            )

    def _refuse_script(self, script: Script, speed: float) -> None:
        if not script.sentences:
            raise InvalidRequest("Nothing in the text can be pronounced; send words or numbers in `input`.", "input")
        if script.seconds / speed > self._max_seconds:
            raise InvalidRequest(
                f"The text would take about {script.seconds / speed / 60:.0f} minutes to speak, and at most "
                f"{self._max_seconds / 60:.0f} are spoken at once. Send it in parts, or faster.",
                "input",
            )


def _refuse_options(request: SpeechRequest) -> None:
    if request.format not in MEDIA_TYPES:
        raise InvalidRequest(
            f"There is no format {request.format!r}. Take one of: {', '.join(MEDIA_TYPES)}.",
            "response_format",
            "invalid_value",
        )
    if not MIN_SPEED <= request.speed <= MAX_SPEED:
        raise InvalidRequest(f"`speed` is between {MIN_SPEED:g} and {MAX_SPEED:g}.", "speed", "invalid_value")
