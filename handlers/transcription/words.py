"""Words and their times, from an alignment of tokens and audio."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from handlers.transcription.segments import Piece
from handlers.transcription.types import Word

AlignedWords: TypeAlias = list[dict[str, Any]]
"""What `WhisperModel.find_alignment` gives for a window."""

_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"
_FRAMES_A_SECOND = 100


class _Aligned:
    """Stands in for the model where its rules for words ask it for an alignment: this one, of the whole batch."""

    frames_per_second = _FRAMES_A_SECOND

    def __init__(self, alignment: AlignedWords) -> None:
        self._alignment = alignment

    def find_alignment(self, *of: object) -> list[AlignedWords]:
        return [self._alignment]


def words_of(
    pieces: Sequence[Piece], alignment: AlignedWords, tokenizer: Tokenizer, seconds: float
) -> list[Sequence[Word]]:
    """Of each piece. Times do not go back, nor beyond the window's `seconds`.

    The rules for long words and punctuation are faster-whisper's.
    """
    segments: list[dict[str, Any]] = [
        {"seek": 0, "start": piece.start, "end": piece.end, "tokens": list(piece.tokens)} for piece in pieces
    ]
    WhisperModel.add_word_timestamps(
        _Aligned(alignment), [segments], tokenizer, None, 0, _PREPENDED, _APPENDED, last_speech_timestamp=0.0
    )
    earliest = 0.0
    words: list[Sequence[Word]] = []
    for segment in segments:
        of_piece: list[Word] = []
        for word in segment["words"]:
            start = min(max(earliest, float(word["start"])), seconds)
            earliest = min(max(start, float(word["end"])), seconds)
            of_piece.append(Word(word["word"], start, earliest, float(word["probability"])))
        words.append(tuple(of_piece))
    return words
