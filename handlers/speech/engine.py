"""What the engines have in common."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from handlers.audio.waveform import Waveform
from handlers.speech.types import Script, Sentence


class Engine(Protocol):
    """voices: names that may be asked for, each with the local voice that speaks. sample_rate: in Hz.

    device, dtype: where it runs and in which number format. batches: whether sentences are computed faster together.
    """

    device: str
    dtype: str
    voices: Mapping[str, str]
    sample_rate: int
    batches: bool

    def prepare(self, text: str) -> Script:
        """The text as it will be spoken, in no time and in any thread; of no sentence if none of it has a sound.

        Raises InvalidRequest for a text with parts that cannot be pronounced, naming them.
        """

    def speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        """One waveform a sentence, always the same for the same sentence; an Exception is that sentence's own."""
