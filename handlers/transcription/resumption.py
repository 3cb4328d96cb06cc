"""Whisper may end its text before the speech of a window ends: it is then asked again, from there. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from handlers.transcription.engine import SAMPLE_RATE, Heard, Window
from handlers.transcription.segments import SECONDS_A_TIMESTAMP
from handlers.transcription.types import Segment

# What is kept around speech takes 0.3 s; of so short a rest, silence is more likely than a word.
_LEAST_SECONDS = 1.0


class Hearing(NamedTuple):
    """unheard_from: seconds of the window at which the text ended, with more audio to come; else None."""

    heard: Heard
    unheard_from: float | None


Hear = Callable[[Sequence[Window]], Sequence[Hearing | Exception]]


def unheard_from(tokens: Sequence[int], timestamp_begin: int, seconds: float) -> float | None:
    """Where the text of a window of that many seconds broke off, as faster-whisper's sequential mode decides it: two
    timestamps at the end promise another segment, one says that nobody speaks any more.
    """
    if len(tokens) < 3 or min(tokens[-2:]) < timestamp_begin:
        return None
    end = (tokens[-1] - timestamp_begin) * SECONDS_A_TIMESTAMP
    return end if _LEAST_SECONDS <= end <= seconds - _LEAST_SECONDS else None


def hear_to_the_end(hear: Hear, windows: Sequence[Window]) -> list[Heard | Exception]:
    """As Engine.transcribe. Rests are heard together; every round shortens a window by a second at least."""
    hearings = hear(windows)
    answers = [hearing.heard if isinstance(hearing, Hearing) else hearing for hearing in hearings]
    broken: dict[int, tuple[Heard, float]] = {}
    for i, (window, hearing) in enumerate(zip(windows, hearings, strict=True)):
        if isinstance(hearing, Hearing) and (start := _rest_start(window, hearing)) is not None:
            broken[i] = hearing.heard, start
    if broken:
        rests = hear_to_the_end(hear, [_rest(windows[i], *so_far) for i, so_far in broken.items()])
        for (i, so_far), rest in zip(broken.items(), rests, strict=True):
            answers[i] = rest if isinstance(rest, Exception) else _joined(*so_far, rest)
    return answers


def _rest_start(window: Window, hearing: Hearing) -> float | None:
    """Not before the end of the last word, which may be found behind the timestamp: no moment is heard twice."""
    if hearing.unheard_from is None:
        return None
    words = [word for segment in hearing.heard.segments for word in segment.words]
    start = max([hearing.unheard_from, *(word.end for word in words[-1:])])
    return start if start <= window.seconds - _LEAST_SECONDS else None


def _rest(window: Window, heard: Heard, start: float) -> Window:
    options = replace(window.options, language=window.options.language or heard.language)
    return Window(window.samples[round(start * SAMPLE_RATE) :], options)


def _joined(heard: Heard, start: float, rest: Heard) -> Heard:
    """The steps of the encoder are those of the window: the rest is part of them."""
    return Heard(
        segments=[*heard.segments, *(_later(segment, start) for segment in rest.segments)],
        language=heard.language or rest.language,
        audio_tokens=heard.audio_tokens,
        output_tokens=heard.output_tokens + rest.output_tokens,
    )


def _later(segment: Segment, by: float) -> Segment:
    words = tuple(replace(word, start=word.start + by, end=word.end + by) for word in segment.words)
    return replace(segment, start=segment.start + by, end=segment.end + by, words=words)
