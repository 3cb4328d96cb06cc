"""Faster and slower speech keeps its pitch."""

import librosa
import numpy as np
import pytest

from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform

RATE = 24_000


def buzz(hertz: float, seconds: float) -> Waveform:
    """A voice-like tone: a fundamental and its overtones."""
    time = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in range(1, 8))
    return (0.3 * np.asarray(tone)).astype(np.float32)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.6, 3.2])
@pytest.mark.parametrize("hertz", [110.0, 220.0])
def test_a_change_of_tempo_changes_the_length_and_not_the_pitch(factor: float, hertz: float) -> None:
    changed = change_tempo(buzz(hertz, 2.0), RATE, factor)
    assert len(changed) / RATE == pytest.approx(2.0 / factor, rel=0.05)
    pitch = np.median(librosa.yin(changed, fmin=60, fmax=500, sr=RATE))
    assert pitch == pytest.approx(hertz, rel=0.03)
