"""Speech: text in, an audio file out, one text at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from batching.batcher import Batcher
from batching.job import Caller, CancelToken, Job
from batching.worker import Worker
from handlers.audio.encode import MEDIA_TYPES, Encoder
from handlers.audio.waveform import Waveform
from handlers.devices import is_out_of_memory, release_memory
from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec
from handlers.speech.types import Speech, SpeechRequest
from handlers.stats import ModelStats

MAX_CHARACTERS = 4096
MIN_SPEED, MAX_SPEED = 0.25, 4.0

# A full-length text read as slowly as can be takes about twenty minutes; thousands of digits would take hours.
MAX_SECONDS = 1800


class Engine(Protocol):
    """voices: names that may be asked for, each with the local voice that speaks. sample_rate: in Hz.

    device, dtype: where it runs and in which number format.
    """

    device: str
    dtype: str
    voices: Mapping[str, str]
    sample_rate: int

    def speak(self, text: str, voice: str, speed: float) -> Iterator[Waveform]:
        """A sentence at a time; nothing at all if no part of the text can be pronounced. voice: a local one.

        Raises InvalidRequest for a text that it cannot take.
        """


@dataclass(frozen=True, slots=True)
class _Reading:
    request: SpeechRequest
    voice: str
    cancel: CancelToken


class HibariHandler:
    """A set of voices. Its queue is counted in characters.

    load_engine: opens the model files in a folder.
    """

    _engine: Engine

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[str], Path],
        *,
        load_engine: Callable[[ModelSpec, Path], Engine] | None = None,
    ) -> None:
        self.spec = spec
        self._open_source = open_source
        self._load_engine = load_engine or _load_hibari
        self._audio_seconds = 0.0
        self._worker = Worker(spec.id)
        # The engine reads one text after another: in a larger batch the first would wait for the last.
        self._batcher: Batcher[_Reading, Speech] = Batcher(
            spec.id,
            self._speak_all,
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
        facts = {"capabilities": ["speech"], "formats": list(MEDIA_TYPES)}
        if not hasattr(self, "_engine"):
            return facts
        engine = self._engine
        return {**facts, "voices": dict(engine.voices), "device": engine.device, "dtype": engine.dtype}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), audio_seconds=self._audio_seconds)

    async def synthesize(self, request: SpeechRequest, caller: Caller) -> Speech:
        """Raises InvalidRequest before the text waits for its turn, and when nothing in it can be pronounced."""
        _refuse_text(request.text)
        _refuse_options(request)
        cancel = CancelToken()
        reading = _Reading(request, self._local_voice(request.voice), cancel)
        speech = await self._batcher.submit(Job(reading, caller, cost=len(request.text), cancel=cancel))
        self._audio_seconds += speech.duration
        return speech

    def _local_voice(self, name: str) -> str:
        voices = self._engine.voices
        if name not in voices:
            raise InvalidRequest(
                f"There is no voice {name!r}. Take one of: {', '.join(sorted(voices))}.", "voice", "invalid_value"
            )
        return voices[name]

    def _load(self) -> None:
        self._engine = self._load_engine(self.spec, self._open_source(self.spec.source))

    def _speak_all(self, readings: Sequence[_Reading]) -> Sequence[Speech | Exception]:
        return [self._answer(reading) for reading in readings]

    def _answer(self, reading: _Reading) -> Speech | InvalidRequest:
        try:
            return self._speak(reading)
        except InvalidRequest as refusal:
            return refusal

    def _speak(self, reading: _Reading) -> Speech:
        """The whole text, or its beginning if nobody waits for it any more."""
        request = reading.request
        with Encoder(request.format, self._engine.sample_rate) as encoder:
            for sentence in self._engine.speak(request.text, reading.voice, request.speed):
                encoder.write(sentence)
                if encoder.seconds > MAX_SECONDS:
                    raise _too_long()
                if reading.cancel.cancelled:
                    break
            audio = encoder.finish()
        if not encoder.seconds:
            raise _unpronounceable()
        return Speech(audio, MEDIA_TYPES[request.format], reading.voice, encoder.seconds)


def _load_hibari(spec: ModelSpec, folder: Path) -> Engine:
    from handlers.speech.hibari import load

    return load(spec, folder)


def _refuse_text(text: str) -> None:
    if not text.strip():
        raise InvalidRequest("There is no text to speak; send some in `input`.", "input")
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(
            f"The text has {len(text)} characters, and at most {MAX_CHARACTERS} are spoken at once. "
            "Send it in parts and join their audio.",
            "input",
            "string_above_max_length",
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


def _too_long() -> InvalidRequest:
    return InvalidRequest(
        f"The text would take more than {MAX_SECONDS // 60} minutes to speak. Send it in parts, or faster.", "input"
    )


def _unpronounceable() -> InvalidRequest:
    return InvalidRequest("Nothing in the text can be pronounced; this voice reads English words and numbers.", "input")
