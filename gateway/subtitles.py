"""Segments as subtitles: SubRip (srt) and WebVTT (vtt, https://www.w3.org/TR/webvtt1/)."""

import re
from collections.abc import Iterable, Iterator

from handlers.transcription.types import Segment


def srt(segments: Iterable[Segment]) -> str:
    """Numbered cues; nothing at all where nobody spoke. SubRip knows no escapes, so an arrow in a text is shortened."""
    cues = enumerate(_cues(segments, ","), start=1)
    return "".join(f"{number}\n{times}\n{re.sub('-{2,}>', '->', text)}\n\n" for number, (times, text) in cues)


def vtt(segments: Iterable[Segment]) -> str:
    """The header and the cues, their texts escaped as WebVTT has it."""
    return "WEBVTT\n\n" + "".join(f"{times}\n{_escaped(text)}\n\n" for times, text in _cues(segments, "."))


def timestamp(milliseconds: int, point: str) -> str:
    """`01:02:03,004`; hours from a hundred on take more digits."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _cues(segments: Iterable[Segment], point: str) -> Iterator[tuple[str, str]]:
    """The line with the times, and the text without blank lines, which would end the cue."""
    for segment in segments:
        lines = [" ".join(line.split()) for line in segment.text.splitlines()]
        if text := "\n".join(filter(None, lines)):
            start = max(0, round(segment.start * 1000))
            # A cue that ends when it begins is never shown, and invalid WebVTT.
            end = max(start + 1, round(segment.end * 1000))
            yield f"{timestamp(start, point)} --> {timestamp(end, point)}", text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
