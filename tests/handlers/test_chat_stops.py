import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.chat.stops import StopMatcher
from tests.handlers.effort import effort, in_fours


def feed_all(matcher: StopMatcher, pieces: list[str]) -> str:
    return "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()


def test_text_before_a_stop_sequence_is_kept_and_the_rest_dropped() -> None:
    matcher = StopMatcher(["END"])
    assert feed_all(matcher, ["one two END three"]) == "one two "
    assert matcher.stopped


def test_a_stop_sequence_over_piece_boundaries_is_never_sent() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.feed(piece) for piece in ["Hello\n", "\nUs", "er: hi"]] == ["Hello", "", ""]
    assert matcher.stopped


def test_a_held_back_end_is_sent_when_it_turns_out_not_to_be_a_stop() -> None:
    matcher = StopMatcher(["abc"])
    assert [matcher.feed("xab"), matcher.feed("d"), matcher.flush()] == ["x", "abd", ""]
    assert not matcher.stopped


def test_a_held_back_end_is_sent_when_the_text_ends_there() -> None:
    matcher = StopMatcher(["abc"])
    assert [matcher.feed("xab"), matcher.flush()] == ["x", "ab"]


def test_the_first_stop_sequence_to_be_complete_wins() -> None:
    assert feed_all(StopMatcher(["c", "b"]), ["abc"]) == "a"
    assert feed_all(StopMatcher(["bcd", "c"]), ["abcd"]) == "ab"


def test_nothing_is_held_back_without_stop_sequences() -> None:
    assert StopMatcher(["", ""]).feed("abc") == "abc"


@given(st.lists(st.text("ab", max_size=4)), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_any_split_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    matches = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    _, cut = min(matches, default=(0, len(text)))
    assert feed_all(StopMatcher(stops), pieces) == text[:cut]


def test_a_stop_sequence_that_overlaps_itself_is_found() -> None:
    assert feed_all(StopMatcher(["aabaaa"]), list("xaabaabaaay")) == "xaab"


@pytest.mark.parametrize("stop", ["ab" * 500 + "c", "a" * 1000 + "b", "END"])
@pytest.mark.parametrize("unit", ["ab", "a", "E", "word "])
def test_a_piece_costs_the_same_whatever_the_stop_sequences(unit: str, stop: str) -> None:
    pieces = in_fours(unit, 9_000)

    assert effort(StopMatcher([stop]).feed, pieces) < 50 * len(pieces)
