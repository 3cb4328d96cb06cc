"""Whisper may end its text before the speech of a window ends: it is then asked again, from there. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from handlers.transcription.engine import SAMPLE_RATE, Heard, Window
from handlers.transcription.types import Segment

_SECONDS_A_TIMESTAMP = 0.02

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
    end = (tokens[-1] - timestamp_begin) * _SECONDS_A_TIMESTAMP
    return end if _LEAST_SECONDS <= end <= seconds - _LEAST_SECONDS else None


def hear_to_the_end(hear: Hear, windows: Sequence[Window]) -> list[Heard | Exception]:
    """As Engine.transcribe. Rests are heard together; every round shortens a window by a second at least."""
    hearings = hear(windows)
    answers: list[Heard | Exception] = [h.heard if isinstance(h, Hearing) else h for h in hearings]
    pairs = zip(windows, hearings, strict=True)
    starts = [_rest_start(window, h) if isinstance(h, Hearing) else None for window, h in pairs]
    broken = {i: start for i, start in enumerate(starts) if start is not None}
    if broken:
        rests = hear_to_the_end(hear, [_rest(windows[i], answers[i], start) for i, start in broken.items()])
        for (i, start), rest in zip(broken.items(), rests, strict=True):
            answers[i] = _joined(answers[i], rest, start)
    return answers


def _rest_start(window: Window, hearing: Hearing) -> float | None:
    """Not before the end of the last word, which may be found behind the timestamp: no moment is heard twice."""
    if hearing.unheard_from is None:
        return None
    words = [word for segment in hearing.heard.segments for word in segment.words]
    start = max([hearing.unheard_from, *(word.end for word in words[-1:])])
    return start if start <= window.seconds - _LEAST_SECONDS else None


def _rest(window: Window, heard: Heard | Exception, start: float) -> Window:
    language = window.options.language or (heard.language if isinstance(heard, Heard) else None)
    return Window(window.samples[round(start * SAMPLE_RATE) :], replace(window.options, language=language))


def _joined(heard: Heard | Exception, rest: Heard | Exception, start: float) -> Heard | Exception:
    """The steps of the encoder are those of the window: the rest is part of them."""
    if isinstance(heard, Exception) or isinstance(rest, Exception):
        return rest
    return Heard(
        segments=[*heard.segments, *(_later(segment, start) for segment in rest.segments)],
        language=heard.language or rest.language,
        audio_tokens=heard.audio_tokens,
        output_tokens=heard.output_tokens + rest.output_tokens,
    )


def _later(segment: Segment, by: float) -> Segment:
    words = tuple(replace(word, start=word.start + by, end=word.end + by) for word in segment.words)
    return replace(segment, start=segment.start + by, end=segment.end + by, words=words)
