"""From a file to windows of speech, read as far as they are needed, and from their time back to the file's."""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate

import numpy as np

from handlers.audio.waveform import Waveform
from handlers.transcription.engine import SAMPLE_RATE
from handlers.transcription.types import VoiceActivity
from handlers.transcription.vad import Speech, SpeechFinder, VoiceModel

# One call reads about as much: the thread is shared with the other files.
_SECONDS_A_TURN = 30


class Cut:
    """A window's samples, and the stretches of the file that they come from, one after the other."""

    def __init__(self, speeches: Sequence[Speech]) -> None:
        self.samples: Waveform = np.concatenate([speech.samples for speech in speeches])
        self.spans = [speech.span for speech in speeches]
        self._ends = list(accumulate(span.end - span.start for span in self.spans))

    @property
    def start(self) -> float:
        """Seconds from the file's beginning to the window's."""
        return self.spans[0].start / SAMPLE_RATE

    def stretch(self, seconds: float, *, is_end: bool = False) -> int:
        """Which stretch that moment of the window lies in. is_end: of two that meet there, the first."""
        sample = round(seconds * SAMPLE_RATE)
        if is_end and sample in self._ends:
            return self._ends.index(sample)
        return min(bisect_right(self._ends, sample), len(self._ends) - 1)

    def file_time(self, seconds: float, stretch: int) -> float:
        """Seconds from the file's beginning to a moment of the window that is counted to that stretch."""
        span, end = self.spans[stretch], self._ends[stretch]
        return round(max(0.0, seconds + (span.end - end) / SAMPLE_RATE), 3)


class Windows:
    """The windows of one file. For a worker thread.

    blocks: of its samples at 16 kHz. seconds: of the longest window.
    """

    def __init__(self, blocks: Iterator[Waveform], model: VoiceModel, activity: VoiceActivity, seconds: float) -> None:
        self._blocks = blocks
        self._finder = SpeechFinder(model, activity, seconds)
        self._most = int(seconds * SAMPLE_RATE)
        self._gathered: list[Speech] = []
        self._turns = self._read()

    @property
    def duration(self) -> float:
        """Seconds read so far."""
        return self._finder.received / SAMPLE_RATE

    def read(self) -> Sequence[Cut] | None:
        """The windows that half a minute more of audio completes, maybe none; None at the end of the file.

        Raises what `blocks` raises.
        """
        return next(self._turns, None)

    def close(self) -> None:
        """Leave the rest of the file unread."""
        self._turns.close()
        if isinstance(self._blocks, Generator):
            self._blocks.close()

    def _read(self) -> Generator[Sequence[Cut], None, None]:
        cuts: list[Cut] = []
        received = 0
        for block in self._blocks:
            cuts += self._cut(self._finder.push(block))
            received += len(block)
            if received >= _SECONDS_A_TURN * SAMPLE_RATE:
                yield cuts
                cuts, received = [], 0
        cuts += self._cut(self._finder.finish())
        if self._gathered:
            cuts.append(Cut(self._gathered))
        yield cuts

    def _cut(self, speeches: Iterator[Speech]) -> Iterator[Cut]:
        for speech in speeches:
            if self._gathered and _length([*self._gathered, speech]) > self._most:
                yield Cut(self._gathered)
                self._gathered = []
            self._gathered.append(speech)


def _length(speeches: Sequence[Speech]) -> int:
    return sum(len(speech.samples) for speech in speeches)
