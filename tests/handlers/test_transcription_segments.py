"""From tokens to segments, and the ladder of temperatures: decisions on plain numbers."""

import pytest

from handlers.transcription.fallback import Attempt, best, ladder, next_temperature
from handlers.transcription.segments import Piece, segment_of, split, token_logprobs
from handlers.transcription.types import Word

BEGIN = 1000


def stamp(seconds: float) -> int:
    return BEGIN + round(seconds * 50)


def bounds(pieces: list[Piece]) -> list[tuple[float, float, list[int]]]:
    return [(round(p.start, 2), round(p.end, 2), list(p.tokens)) for p in pieces]


def test_segments_are_cut_between_two_timestamps() -> None:
    tokens = [stamp(0), 1, 2, stamp(2.5), stamp(3), 3, stamp(9)]
    assert bounds(split(tokens, BEGIN, 10)) == [
        (0, 2.5, [stamp(0), 1, 2, stamp(2.5)]),
        (3, 9, [stamp(3), 3, stamp(9)]),
    ]


def test_speech_that_is_not_finished_lasts_to_the_end_of_the_window() -> None:
    tokens = [stamp(0), 1, stamp(2), stamp(2), 2, 3]
    assert bounds(split(tokens, BEGIN, 7.5)) == [(0, 2, tokens[:3]), (2, 7.5, tokens[3:])]


@pytest.mark.parametrize(
    ("tokens", "end"),
    [([1, 2, 3], 5.0), ([stamp(0), 1, 2], 5.0), ([stamp(0), 1, stamp(4)], 4.0), ([stamp(0), 1, stamp(29)], 5.0)],
    ids=["no timestamps", "no end", "an end", "an end in the padding"],
)
def test_without_a_cut_there_is_one_segment(tokens: list[int], end: float) -> None:
    assert bounds(split(tokens, BEGIN, 5)) == [(0, end, tokens)]


def test_no_token_is_lost_and_no_time_is_outside_the_window() -> None:
    tokens = [stamp(0), 1, stamp(4), stamp(4), 2, stamp(20), stamp(20), stamp(28), stamp(29), 3]
    pieces = split(tokens, BEGIN, 10)
    assert [token for piece in pieces for token in piece.tokens] == tokens
    assert [piece.first for piece in pieces] == [0, 3, 6, 7, 8]
    assert all(0 <= piece.start <= 10 and 0 <= piece.end <= 10 for piece in pieces)


def test_logprobs_are_of_text_and_in_bytes() -> None:
    found = token_logprobs([5, 6, 99, BEGIN], [-0.1, -0.2, -0.3, -0.4], ["Ġcaf", "Ã", "<|endoftext|>", "<|0|>"], 99)
    assert [(token.bytes, token.logprob) for token in found] == [(b" caf", -0.1), (b"\xc3", -0.2)]
    assert found[0].token == " caf"


def attempt(text: str = "Some words of speech.", logprob: float = -0.2, silence: float = 0.0) -> Attempt:
    return Attempt([1], text, 0.0, logprob, silence)


@pytest.mark.parametrize(
    ("tried", "failed", "silent"),
    [
        (attempt(), False, False),
        (attempt(logprob=-1.1), True, False),
        (attempt("again " * 30), True, False),
        (attempt(logprob=-1.1, silence=0.7), False, True),
        (attempt(logprob=-0.5, silence=0.7), False, False),
        (attempt(""), False, False),
    ],
    ids=["fine", "improbable", "repetitive", "silence", "probable silence", "nothing"],
)
def test_what_fails_is_improbable_or_repeats_itself(tried: Attempt, failed: bool, silent: bool) -> None:
    assert (tried.failed, tried.is_silence) == (failed, silent)


def test_the_last_attempt_is_taken_if_it_holds() -> None:
    attempts = [attempt("again " * 30, -0.1), attempt(logprob=-0.9)]
    assert best(attempts) is attempts[1]


def test_where_all_fail_the_most_probable_that_does_not_repeat_itself_is_taken() -> None:
    attempts = [attempt("again " * 30, -0.1), attempt(logprob=-1.2), attempt(logprob=-1.5)]
    assert best(attempts) is attempts[1]
    repetitive = [attempt("again " * 30, -0.4), attempt("again " * 40, -0.3)]
    assert best(repetitive) is repetitive[1]


def test_a_temperature_that_was_asked_for_is_the_only_one() -> None:
    assert ladder(0.3) == (0.3,)
    assert ladder(0.0) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("tried", "temperature"),
    [
        ([], 0.0),
        ([attempt()], None),
        ([attempt(logprob=-2)], 0.2),
        ([attempt(logprob=-2), attempt()], None),
        ([attempt(logprob=-2), attempt(logprob=-2)], None),
    ],
    ids=["first", "holds", "failed", "held at last", "no more"],
)
def test_a_window_is_decoded_again_while_it_fails_and_a_temperature_is_left(
    tried: list[Attempt], temperature: float | None
) -> None:
    assert next_temperature(tried, (0.0, 0.2)) == temperature


def test_a_segment_begins_and_ends_with_its_words() -> None:
    piece, words = Piece(0, [1, 2], 0.5, 9.0), [Word(" a", 1.0, 1.5, 0.9), Word(" b", 2.0, 3.0, 0.9)]
    timed = segment_of(piece, attempt(), " a b", words, ())
    assert (timed.start, timed.end, timed.tokens) == (1.0, 3.0, (1, 2))
    untimed = segment_of(piece, attempt(), " a b", (), ())
    assert (untimed.start, untimed.end) == (0.5, 9.0)
