"""From Whisper's tokens to segments: its timestamps are tokens too, one every fiftieth of a second."""

from collections.abc import Sequence
from dataclasses import dataclass

from handlers.transcription.fallback import Attempt
from handlers.transcription.types import Segment, TokenLogprob, Word

SECONDS_A_TIMESTAMP = 0.02


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens of one segment. start, end: seconds from the window's beginning. first: of them in the window's."""

    first: int
    tokens: Sequence[int]
    start: float
    end: float


def split(tokens: Sequence[int], timestamp_begin: int, seconds: float) -> list[Piece]:
    """The segments of a window of that many seconds, cut where one timestamp follows another.

    As faster-whisper's `_split_segments_by_timestamps`, but speech that is not finished when the window ends is a
    segment as well: no later window hears it again.
    """
    stamps = [token >= timestamp_begin for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if stamps[i] and stamps[i - 1]]
    if not cuts:
        last = next((token for token in reversed(tokens) if token > timestamp_begin), None)
        end = seconds if last is None else min(seconds, (last - timestamp_begin) * SECONDS_A_TIMESTAMP)
        return [Piece(0, tokens, 0.0, end)]

    def time_at(i: int, otherwise: float) -> float:
        if not stamps[i]:
            return otherwise
        return min(seconds, (tokens[i] - timestamp_begin) * SECONDS_A_TIMESTAMP)

    bounds = [0, *cuts, len(tokens)]
    pieces: list[Piece] = []
    for first, end in zip(bounds, bounds[1:], strict=False):
        start = time_at(first, pieces[-1].end if pieces else 0.0)
        pieces.append(Piece(first, tokens[first:end], start, time_at(end - 1, seconds) if end - 1 > first else start))
    return pieces


def segment_of(
    piece: Piece, attempt: Attempt, text: str, words: Sequence[Word], logprobs: Sequence[TokenLogprob]
) -> Segment:
    """As Heard has it. Where there are words, its bounds are theirs."""
    return Segment(
        id=0,
        seek=0,
        start=words[0].start if words else piece.start,
        end=words[-1].end if words else piece.end,
        text=text,
        tokens=tuple(piece.tokens),
        temperature=attempt.temperature,
        avg_logprob=attempt.avg_logprob,
        compression_ratio=attempt.compression_ratio,
        no_speech_prob=attempt.no_speech_prob,
        words=tuple(words),
        logprobs=tuple(logprobs),
    )


def token_logprobs(
    tokens: Sequence[int], logprobs: Sequence[float], texts: Sequence[str], end_of_text: int
) -> list[TokenLogprob]:
    """Of the tokens that are text. texts: of all of them, in the vocabulary's own writing."""
    return [
        _token_logprob(text, logprob)
        for token, logprob, text in zip(tokens, logprobs, texts, strict=True)
        if token < end_of_text
    ]


def _token_logprob(text: str, logprob: float) -> TokenLogprob:
    data = bytes(_BYTES[character] for character in text)
    return TokenLogprob(data.decode("utf-8", "replace"), data, logprob)


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in vocabularies of GPT-2's kind (openai/gpt-2, encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()
