"""What a transcription is, apart from any wire format."""

from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """file: seekable, read in a worker thread; the caller closes it. language: ISO-639-1, None detects.
    temperature 0 is greedy, and warmer where the engine finds the text improbable."""

    file: BinaryIO
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """duration: seconds of audio decoded. text is empty for silence. language: ISO-639-1; None if nobody spoke it."""

    text: str
    language: str | None
    duration: float
