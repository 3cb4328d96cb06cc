"""Where speech is found must not depend on how the audio arrives."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.vad import get_speech_timestamps

from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.waveform import Waveform
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES
from handlers.transcription.types import VoiceActivity
from handlers.transcription.vad import FRAME, Speech, SpeechFinder, SpeechRules, load_voice_model
from tests.handlers.speech_models import LoudnessModel

FRAMES_A_SECOND = SAMPLE_RATE / FRAME


def talk(rng: np.random.Generator, seconds: float) -> Waveform:
    """Loud and quiet stretches of any length, and of any level between."""
    parts: list[Waveform] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        length = int(rng.exponential(rng.choice([0.2, 1.0, 8.0])) * SAMPLE_RATE)
        parts.append(np.full(length, rng.choice([0.0, 0.2, 0.4, 0.9]), np.float32))
    return np.concatenate(parts)[: int(seconds * SAMPLE_RATE)]


def found(finder: SpeechFinder, blocks: list[Waveform]) -> list[Speech]:
    return [*(speech for block in blocks for speech in finder.push(block)), *finder.finish()]


def finder(activity: VoiceActivity | None = None, seconds: float = 30) -> SpeechFinder:
    return SpeechFinder(LoudnessModel(), activity or VoiceActivity(), seconds)


@pytest.mark.parametrize("seed", range(12))
def test_stretches_are_those_of_the_audio_as_a_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    audio = talk(rng, 60)
    longest, silence = float(rng.choice([5, 10, 30])), int(rng.choice([100, 500, 2000]))
    monkeypatch.setattr(
        "faster_whisper.vad.get_vad_model",
        lambda: lambda padded: np.abs(padded.reshape(-1, FRAME)).mean(axis=1),
    )
    whole = get_speech_timestamps(
        audio, max_speech_duration_s=longest, min_silence_duration_ms=silence, speech_pad_ms=300
    )
    cuts = np.sort(rng.integers(0, len(audio), rng.integers(0, 200)))
    speeches = found(finder(VoiceActivity(silence_duration_ms=silence), longest), np.split(audio, cuts))
    assert [speech.span for speech in speeches] == [(span["start"], span["end"]) for span in whole]
    for speech in speeches:
        assert np.array_equal(speech.samples, audio[speech.span.start : speech.span.end])
        assert len(speech.samples) <= longest * SAMPLE_RATE


@pytest.mark.parametrize("activity", [VoiceActivity(prefix_padding_ms=0), VoiceActivity(prefix_padding_ms=900)])
def test_stretches_never_overlap_whatever_the_padding(activity: VoiceActivity) -> None:
    speeches = found(finder(activity), [talk(np.random.default_rng(1), 60)])
    assert len(speeches) > 3
    assert all(one.span.end <= other.span.start for one, other in pairwise(speeches))


def test_what_is_kept_before_a_voice_is_asked_for() -> None:
    audio = np.zeros(8 * SAMPLE_RATE, np.float32)
    audio[64 * FRAME : 128 * FRAME] = 1
    (speech,) = found(finder(VoiceActivity(prefix_padding_ms=100)), [audio])
    assert speech.span == (64 * FRAME - 1600, 128 * FRAME + 4800)


def test_hours_of_silence_are_not_kept() -> None:
    watched = finder()
    for _ in range(600):
        assert list(watched.push(np.zeros(SAMPLE_RATE, np.float32))) == []
    assert len(watched._kept) < 2 * SAMPLE_RATE


def test_speech_that_the_file_cuts_off_ends_with_it() -> None:
    audio = np.ones(SAMPLE_RATE + 7, np.float32)
    (speech,) = found(finder(), [audio])
    assert speech.span == (0, len(audio))


def test_a_pause_within_a_word_is_bridged() -> None:
    rules = SpeechRules(threshold=0.5, silence=SAMPLE_RATE, longest=60 * SAMPLE_RATE)
    for probability in [0.9] * 10 + [0.1] * 20 + [0.9] * 10:
        assert rules.push(probability) is None
    assert rules.finish(40 * FRAME) == (0, 40 * FRAME)


@pytest.mark.models
def test_recorded_speech_is_found_in_any_blocks(models_dir: Path) -> None:
    with (fetch(SPEECH_SAMPLES, models_dir) / "two_cities.wav").open("rb") as file:
        audio = decode(file, max_seconds=60)
    model = load_voice_model()
    whole = get_speech_timestamps(audio, max_speech_duration_s=30, min_silence_duration_ms=500, speech_pad_ms=300)
    for size in (1000, 16_384, len(audio)):
        blocks = [audio[start : start + size] for start in range(0, len(audio), size)]
        spans = [speech.span for speech in found(SpeechFinder(model, VoiceActivity(), 30), blocks)]
        assert spans == [(span["start"], span["end"]) for span in whole]
