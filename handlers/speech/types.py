"""What a synthesis is, apart from any wire format."""

import textwrap
from dataclasses import dataclass

from handlers.errors import InvalidRequest

MAX_CHARACTERS = 4096
"""Of a text, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """voice: an OpenAI voice name or a local one. speed: 0.25 to 4. format: wav, mp3, opus, flac, aac or pcm."""

    text: str
    voice: str
    format: str = "mp3"
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Script:
    """sentences: what is spoken, one after the other. seconds: about how long that takes at speed 1.

    transliterated: alphabets that were written in Latin letters for it.
    """

    sentences: tuple[str, ...]
    seconds: float
    transliterated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sentence:
    """voice: a local one. speed: 0.25 to 4."""

    text: str
    voice: str
    speed: float = 1.0


def unreadable(sentence: str) -> InvalidRequest:
    """What an engine answers for a sentence that it stumbles over."""
    return InvalidRequest(
        f"The voice cannot read {textwrap.shorten(sentence, 60)!r}. Write its numbers and signs in words.", "input"
    )
