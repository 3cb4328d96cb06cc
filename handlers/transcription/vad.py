"""Where somebody speaks, in audio that comes piece by piece: Silero VAD, and the rules it is read by.

The rules are those of `faster_whisper.vad.get_speech_timestamps` (from snakers4/silero-vad), which needs all of the
audio at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from handlers.audio.waveform import Waveform
from handlers.transcription.engine import SAMPLE_RATE
from handlers.transcription.types import VoiceActivity

FRAME = 512
"""Samples that Silero VAD judges at once."""

# The model also sees the end of the frame before.
_CONTEXT = 64
_STATE = (1, 1, 128)

# Groups are the same however the audio arrives, and so are the probabilities, to the last bit.
_FRAMES_AT_ONCE = 32

# A voice that becomes less probable than the threshold by this has paused.
_HYSTERESIS = 0.15
_LEAST_THRESHOLD = 0.01

# A pause this long is a place to cut speech that is longer than a window.
_PAUSE_TO_CUT = 98 * SAMPLE_RATE // 1000

# What is kept behind a voice: the decay of a last consonant.
_TAIL = 300 * SAMPLE_RATE // 1000


class Span(NamedTuple):
    """A stretch of the file, in samples."""

    start: int
    end: int


class Speech(NamedTuple):
    """A stretch of speech and its samples."""

    span: Span
    samples: Waveform


class VoiceModel(Protocol):
    """Silero VAD's network, as onnxruntime's session gives it."""

    def run(self, outputs: None, inputs: dict[str, object]) -> list[object]: ...


def load_voice_model() -> VoiceModel:
    """The network that faster-whisper brings along. It may run in several threads at once."""
    from handlers.transcription.openmp import import_ctranslate2

    import_ctranslate2()
    from faster_whisper.vad import get_vad_model

    session: VoiceModel = get_vad_model().session
    return session


class VoiceProbabilities:
    """Silero VAD on a stream, its state carried along."""

    def __init__(self, model: VoiceModel) -> None:
        self._model = model
        self._state: tuple[object, object] = (np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32))
        self._context = np.zeros(_CONTEXT, np.float32)

    def __call__(self, samples: Waveform) -> list[float]:
        """One probability a frame. samples: whole frames, in order."""
        ends = np.concatenate([self._context, samples]).astype(np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(ends, _CONTEXT + FRAME)[::FRAME]
        h, c = self._state
        output, h, c = self._model.run(None, {"input": np.ascontiguousarray(frames), "h": h, "c": c})
        self._state, self._context = (h, c), samples[-_CONTEXT:]
        return [float(probability) for probability in np.asarray(output).ravel()]


@dataclass(slots=True)
class SpeechRules:
    """From probabilities to stretches of speech, without padding. Pure.

    longest: samples of a stretch; a longer one is cut at its last pause, or else where it is.
    """

    threshold: float
    silence: int
    longest: int
    start: int | None = None
    _at: int = 0
    _pause: int = 0
    _cut: int = 0
    _resumed: int = 0

    def push(self, probability: float) -> Span | None:
        """The next frame's; returns a stretch that has ended."""
        at, self._at = self._at, self._at + FRAME
        spoken = probability >= self.threshold
        if spoken and self._pause:
            self._pause = 0
            if self._resumed < self._cut:
                self._resumed = at
        if self.start is None:
            self.start = at if spoken else None
            return None
        if at - self.start > self.longest and not self._cut:
            return self._end(at)
        ended = self._end(self._cut, self._resumed) if at - self.start > self.longest else None
        if self.start is None or probability >= max(self.threshold - _HYSTERESIS, _LEAST_THRESHOLD):
            return ended
        return self._paused(at) or ended

    def finish(self, length: int) -> Span | None:
        """The stretch that the file's end cuts off."""
        return None if self.start is None or self.start >= length else self._end(length)

    def _paused(self, at: int) -> Span | None:
        self._pause = self._pause or at
        if at - self._pause > _PAUSE_TO_CUT:
            self._cut = self._pause
        return self._end(self._pause) if at - self._pause >= self.silence else None

    def _end(self, end: int, resumed: int = 0) -> Span:
        """resumed: where speech went on after `end`; before it if it did not."""
        assert self.start is not None
        span = Span(self.start, end)
        self.start = resumed if resumed > end else None
        self._pause = self._cut = self._resumed = 0
        return span


class SpeechFinder:
    """The stretches of speech of a stream, padded, with their samples. Memory is bounded by two longest stretches.

    seconds: of the longest stretch, padding included.
    """

    def __init__(self, model: VoiceModel, activity: VoiceActivity, seconds: float) -> None:
        self._probabilities = VoiceProbabilities(model)
        self._lead = activity.prefix_padding_ms * SAMPLE_RATE // 1000
        longest = int(seconds * SAMPLE_RATE) - FRAME - self._lead - _TAIL
        self._rules = SpeechRules(activity.threshold, activity.silence_duration_ms * SAMPLE_RATE // 1000, longest)
        self._unseen: list[Waveform] = []
        self._kept = np.zeros(0, np.float32)
        self._kept_from = 0
        self._judged = 0
        self._ended: Span | None = None
        self._next_start: int | None = None
        self.received = 0

    def push(self, block: Waveform) -> Iterator[Speech]:
        """The next samples, however many; yields the stretches that are complete with them."""
        self._unseen.append(block)
        self.received += len(block)
        group = FRAME * _FRAMES_AT_ONCE
        if self.received - self._judged < group:
            return
        unseen = np.concatenate(self._unseen)
        whole = len(unseen) // group * group
        self._unseen = [unseen[whole:]]
        for start in range(0, whole, group):
            yield from self._judge(unseen[start : start + group])

    def finish(self) -> Iterator[Speech]:
        """No more samples come."""
        rest = np.concatenate([np.zeros(0, np.float32), *self._unseen])
        if len(rest):
            yield from self._judge(np.pad(rest, (0, -len(rest) % FRAME)))
        last = self._rules.finish(self.received)
        if last is not None:
            yield from self._follow(last)
        if self._ended is not None:
            yield self._speech(min(self._ended.end + _TAIL, self.received))

    def _judge(self, samples: Waveform) -> Iterator[Speech]:
        self._kept = np.concatenate([self._kept, samples])
        for probability in self._probabilities(samples):
            self._judged += FRAME
            ended = self._rules.push(probability)
            if ended is not None:
                yield from self._follow(ended)
            yield from self._settle()
        self._forget()

    def _follow(self, ended: Span) -> Iterator[Speech]:
        """A stretch ended: the one before it has its neighbour now."""
        yield from self._settle_before(ended.start)
        start = self._padded_start(ended.start) if self._next_start is None else self._next_start
        self._ended, self._next_start = Span(start, ended.end), None

    def _settle(self) -> Iterator[Speech]:
        """The stretch that ended is complete once it is known how far the next one is."""
        if self._ended is None:
            return
        if self._rules.start is not None:
            yield from self._settle_before(self._rules.start)
        elif self._judged - self._ended.end >= self._lead + _TAIL:
            yield self._speech(self._ended.end + _TAIL)

    def _settle_before(self, start: int) -> Iterator[Speech]:
        """Where the pause before `start` is shorter than both paddings, each takes its share of it."""
        if self._ended is None:
            return
        both, pause = self._lead + _TAIL, start - self._ended.end
        tail = _TAIL if pause >= both else pause * _TAIL // both
        lead = self._lead if pause >= both else pause - tail
        self._next_start = start - lead
        yield self._speech(self._ended.end + tail)

    def _padded_start(self, start: int) -> int:
        return max(0, start - self._lead)

    def _speech(self, end: int) -> Speech:
        assert self._ended is not None
        span, self._ended = Span(self._ended.start, end), None
        return Speech(span, self._kept[span.start - self._kept_from : span.end - self._kept_from].copy())

    def _forget(self) -> None:
        """Drop the samples that no stretch can need any more."""
        if self._ended is not None:
            first = self._ended.start
        elif self._rules.start is not None:
            first = self._padded_start(self._rules.start) if self._next_start is None else self._next_start
        else:
            first = max(0, self._judged - self._lead)
        dropped = max(0, first - self._kept_from)
        self._kept, self._kept_from = self._kept[dropped:], self._kept_from + dropped
