"""When a window is decoded again, warmer, and which of its attempts is taken. Pure."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

# Whisper's own ladder and thresholds (Radford et al. 2022, section 4.5): hotter while the text repeats itself or is
# improbable.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_REPETITIVE = 2.4
_LEAST_PROBABLE = -1.0
_NO_SPEECH = 0.6


@dataclass(frozen=True, slots=True)
class Attempt:
    """One decoding of a window. avg_logprob: of a token. logprobs: of each, where they were asked for."""

    tokens: Sequence[int]
    text: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    logprobs: Sequence[float] = ()

    @property
    def compression_ratio(self) -> float:
        """How often the text repeats itself."""
        data = self.text.strip().encode()
        return len(data) / len(zlib.compress(data))

    @property
    def is_silence(self) -> bool:
        return self.no_speech_prob > _NO_SPEECH and self.avg_logprob <= _LEAST_PROBABLE

    @property
    def failed(self) -> bool:
        """Whether it is worth another one. Silence is not."""
        if self.is_silence:
            return False
        return self.compression_ratio > _MOST_REPETITIVE or self.avg_logprob < _LEAST_PROBABLE


def ladder(temperature: float) -> Sequence[float]:
    """The temperatures to try in turn. 0 is the whole ladder; another one was chosen by the caller."""
    return (temperature,) if temperature else TEMPERATURES


def next_temperature(attempts: Sequence[Attempt], temperatures: Sequence[float]) -> float | None:
    """At which a window is decoded after these attempts; None when there is no need, or no way, to do it again."""
    if attempts and (not attempts[-1].failed or len(attempts) == len(temperatures)):
        return None
    return temperatures[len(attempts)]


def best(attempts: Sequence[Attempt]) -> Attempt:
    """The last one, unless it failed as all before it: then the most probable, of those that do not repeat if any."""
    if not attempts[-1].failed:
        return attempts[-1]
    varied = [attempt for attempt in attempts if attempt.compression_ratio <= _MOST_REPETITIVE]
    return max(varied or attempts, key=lambda attempt: attempt.avg_logprob)
