"""Subtitles, read back by a parser that is not ours (webvtt-py)."""

import math
import re
from collections.abc import Sequence

import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from gateway.subtitles import srt, timestamp, vtt
from handlers.transcription.types import Segment
from tests.gateway.fakes import said

SECONDS = st.floats(0, 400 * 3600)
TEXTS = st.lists(st.sampled_from(["a", " ", "\n", "-->", "--->", "<b>", "&", "&amp;", "1", "\r", "\u2028", "NOTE"]))
SEGMENTS = st.lists(
    st.builds(lambda text, start, length: said(text, start, start + length), TEXTS.map("".join), SECONDS, SECONDS),
    max_size=5,
)


def seconds(time: str) -> float:
    hours, minutes, rest = time.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def cues_of(text: str) -> Sequence[webvtt.Caption]:
    """Raises for what is not valid WebVTT."""
    return webvtt.from_string(text, strict=True).captions


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, "00:00:00,000"),
        (999, "00:00:00,999"),
        (59_999, "00:00:59,999"),
        (60_000, "00:01:00,000"),
        (3_599_999, "00:59:59,999"),
        (3_600_000, "01:00:00,000"),
        (360_000_000, "100:00:00,000"),
    ],
)
def test_a_timestamp_carries_into_minutes_and_hours(milliseconds: int, expected: str) -> None:
    assert timestamp(milliseconds, ",") == expected


@given(start=SECONDS, length=st.floats(0, 10))
def test_no_cue_ends_before_it_begins_and_none_is_off_by_more_than_a_millisecond(start: float, length: float) -> None:
    [cue] = cues_of(vtt([said("Hi", start, start + length)]))
    begun, ended = seconds(cue.start), seconds(cue.end)
    assert begun < ended
    assert math.isclose(begun, start, abs_tol=0.000501) and math.isclose(ended, start + length, abs_tol=0.001501)


@given(segments=SEGMENTS)
def test_any_segments_are_valid_webvtt_with_their_text(segments: list[Segment]) -> None:
    cues = cues_of(vtt(segments))
    spoken = [segment for segment in segments if segment.text.strip()]
    assert [cue.lines for cue in cues] == [
        [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in lines_of(segment.text)]
        for segment in spoken
    ]


@given(segments=SEGMENTS)
def test_any_segments_are_numbered_cues_of_subrip_with_their_text(segments: list[Segment]) -> None:
    spoken = [segment for segment in segments if segment.text.strip()]
    blocks = srt(segments).split("\n\n")
    assert blocks.pop() == ""
    for number, (block, segment) in enumerate(zip(blocks, spoken, strict=True), start=1):
        head, times, *lines = block.split("\n")
        assert head == str(number)
        assert re.fullmatch(r"\d{2,}:\d\d:\d\d,\d{3} --> \d{2,}:\d\d:\d\d,\d{3}", times)
        assert "\n".join(lines) == re.sub("-{2,}>", "->", "\n".join(lines_of(segment.text)))


def test_an_arrow_in_the_text_does_not_end_a_cue() -> None:
    assert srt([said("a --> b\n\n<i>c</i> & d", 0, 1)]) == (
        "1\n00:00:00,000 --> 00:00:01,000\na -> b\n<i>c</i> & d\n\n"
    )
    assert vtt([said("a --> b\n\n<i>c</i> & d", 0, 1)]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na --&gt; b\n&lt;i&gt;c&lt;/i&gt; &amp; d\n\n"
    )


def test_a_segment_without_words_is_no_cue() -> None:
    assert srt([said(" \n"), said("Hi")]).startswith("1\n") and vtt([said("")]) == "WEBVTT\n\n"


def test_times_before_the_beginning_are_the_beginning() -> None:
    assert "00:00:00,000 --> 00:00:00,001" in srt([said("Hi", -0.25, -0.125)])
