"""What computes a transcription: a batch of windows in, what was said in each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from handlers.audio.waveform import Waveform
from handlers.transcription.types import Segment

SAMPLE_RATE = 16_000
"""Of every window, in Hz."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a window is to be read; the fields are those of TranscriptionRequest.

    language: None detects it, among `languages` where there are any.
    """

    language: str | None = None
    languages: tuple[str, ...] = ()
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    temperature: float = 0.0
    word_timestamps: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """At most `window_seconds` of speech, its pauses cut out. samples: at 16 kHz."""

    samples: Waveform
    options: Options = Options()

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said in a window. segments: in order, none if nothing was; their ids and `seek` are 0, their times
    seconds from the window's beginning. language: ISO-639-1, as given or detected.

    audio_tokens: steps of the encoder. output_tokens: generated for the segments, special ones included.
    """

    segments: Sequence[Segment]
    language: str | None
    audio_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a loaded engine can do.

    languages: ISO-639-1 codes; none where the engine takes no language, and tells none. translates: whether it knows
    the task "translate". word_timestamps, logprobs: whether segments can carry words and tokens. max_prompt_tokens: of
    prompt and keywords together; 0 takes neither. window_seconds: the longest window. temperatures: whether it takes
    any but 0. device, dtype: where it runs and in which number format.
    """

    languages: Sequence[str]
    translates: bool
    word_timestamps: bool
    logprobs: bool
    max_prompt_tokens: int
    device: str
    dtype: str
    window_seconds: float = 30.0
    temperatures: bool = True

    @classmethod
    def of_audio_alone(cls, *, word_timestamps: bool, device: str, dtype: str) -> Self:
        """Of a model that takes nothing but audio: neither language nor task, prompt or temperature."""
        return cls(
            languages=(),
            translates=False,
            word_timestamps=word_timestamps,
            logprobs=True,
            max_prompt_tokens=0,
            device=device,
            dtype=dtype,
            temperatures=False,
        )


class Engine(Protocol):
    """One loaded and warm model. What goes in and out is JSON and samples, so that it can be in a process."""

    facts: EngineFacts

    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """One entry a window, in order; an Exception is the error of that window alone. Called in one thread.

        What it raises is taken for the whole batch's failure, and the batch is tried again in halves.
        """

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """Tokens of both together. Called in another thread, also while `transcribe` runs."""
