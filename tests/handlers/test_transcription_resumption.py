"""A window whose text breaks off is heard again from there: where that is, and how the parts are joined."""

from collections.abc import Sequence

import numpy as np
import pytest

from handlers.transcription.engine import SAMPLE_RATE, Heard, Options, Window
from handlers.transcription.resumption import Hear, Hearing, hear_to_the_end, unheard_from
from handlers.transcription.types import Segment, Word

BEGIN = 1000


def stamp(seconds: float) -> int:
    return BEGIN + round(seconds * 50)


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ([stamp(0), 1, stamp(4), stamp(4)], 4.0),
        ([stamp(0), 1, stamp(4)], None),
        ([stamp(0), 1, stamp(4), stamp(4), 2], None),
        ([stamp(0), 1, stamp(9.5), stamp(9.5)], None),
        ([stamp(0), 1, stamp(0.5), stamp(0.5)], None),
        ([stamp(4), stamp(4)], None),
        ([], None),
    ],
    ids=["broken off", "one at the end", "unfinished", "no rest", "no progress", "no text", "nothing"],
)
def test_two_timestamps_at_the_end_promise_more(tokens: list[int], start: float | None) -> None:
    assert unheard_from(tokens, BEGIN, 10.0) == start


def segment(start: float, end: float) -> Segment:
    word = Word(" word", start, end, 0.9)
    return Segment(0, 0, start, end, " word", [1], 0.0, -0.1, 1.0, 0.0, words=[word])


def slow_listener(calls: list[list[float]]) -> Hear:
    """Hears two seconds at a time, up to a window of one."""

    def hear(windows: Sequence[Window]) -> Sequence[Hearing | Exception]:
        calls.append([window.seconds for window in windows])
        return [
            Hearing(Heard([segment(0.5, 2.0)], "de", round(w.seconds * 50), 3), 2.0 if w.seconds > 2 else None)
            for w in windows
        ]

    return hear


def silence(seconds: float) -> Window:
    return Window(np.zeros(round(seconds * SAMPLE_RATE), np.float32), Options(word_timestamps=True))


def test_rests_are_heard_together_and_their_times_are_the_windows() -> None:
    calls: list[list[float]] = []
    long, short, middle = hear_to_the_end(slow_listener(calls), [silence(6), silence(1), silence(4)])
    assert calls == [[6, 1, 4], [4, 2], [2]]
    assert isinstance(long, Heard) and isinstance(short, Heard) and isinstance(middle, Heard)
    assert [(s.start, s.end) for s in long.segments] == [(0.5, 2), (2.5, 4), (4.5, 6)]
    assert [(w.start, w.end) for s in long.segments for w in s.words] == [(0.5, 2), (2.5, 4), (4.5, 6)]
    assert (long.audio_tokens, long.output_tokens) == (300, 9)
    assert len(short.segments) == 1 and len(middle.segments) == 2


def test_the_language_of_the_beginning_holds_for_the_rest() -> None:
    asked: list[str | None] = []

    def hear(windows: Sequence[Window]) -> Sequence[Hearing]:
        asked.extend(window.options.language for window in windows)
        return [Hearing(Heard([], "ja", 1, 1), 2.0 if w.seconds > 2 else None) for w in windows]

    hear_to_the_end(hear, [silence(4)])
    assert asked == [None, "ja"]


def test_an_error_of_a_rest_is_that_of_its_window_alone() -> None:
    def hear(windows: Sequence[Window]) -> Sequence[Hearing | Exception]:
        heard = Heard([segment(0, 1)], "en", 1, 1)
        return [
            ValueError("rest") if w.seconds == 3 else Hearing(heard, 2.0 if w.seconds > 4 else None) for w in windows
        ]

    failed, fine = hear_to_the_end(hear, [silence(5), silence(4)])
    assert isinstance(failed, ValueError)
    assert isinstance(fine, Heard)


def test_no_word_is_heard_twice_whose_end_lies_behind_the_timestamp() -> None:
    calls: list[list[float]] = []

    def hear(windows: Sequence[Window]) -> Sequence[Hearing]:
        calls.append([window.seconds for window in windows])
        return [Hearing(Heard([segment(0, 2.5)], "en", 1, 1), 2.0 if w.seconds > 3 else None) for w in windows]

    hear_to_the_end(hear, [silence(4), silence(3.25)])
    assert calls == [[4, 3.25], [1.5]]
