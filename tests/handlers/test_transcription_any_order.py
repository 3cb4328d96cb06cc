"""The starter model hears a window as it does alone, whoever it shares a batch with, and in whatever order."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ctranslate2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from handlers.transcription.engine import Heard, Options, Window
from handlers.transcription.faster_whisper import Features, WhisperEngine, load

pytestmark = pytest.mark.models

WORDS = Options(word_timestamps=True)
CLIPS = (
    (0.9, 2.9, WORDS),
    (5.1, 8.0, WORDS),
    (8.9, 11.0, Options()),
    (13.5, 16.4, Options(logprobs=True)),
    (17.6, 20.4, Options()),
)
"""Of two_cities.wav: seconds from and to, and how it is read."""

orders = st.permutations(range(len(CLIPS)))
cuts = st.sets(st.integers(1, len(CLIPS) - 1))
"""Where one batch ends and the next begins."""


@pytest.fixture(scope="module")
def engine(models_dir: Path) -> WhisperEngine:
    """Its encoder, which reads one window at a time on a processor and takes most of the time, reads each once."""
    engine = load(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))
    encode = engine._model.encode
    known: dict[bytes, ctranslate2.StorageView] = {}

    def encode_once(features: Features) -> ctranslate2.StorageView:
        key = features.tobytes()
        known[key] = known[key] if key in known else encode(features)
        return known[key]

    engine._model.encode = encode_once
    return engine


@pytest.fixture(scope="module")
def windows(models_dir: Path) -> list[Window]:
    with (fetch(SPEECH_SAMPLES, models_dir) / "two_cities.wav").open("rb") as file:
        samples = decode(file, max_seconds=60)
    return [Window(samples[int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)], options) for a, b, options in CLIPS]


@pytest.fixture(scope="module")
def alone(engine: WhisperEngine, windows: list[Window]) -> list[Heard]:
    return [answer for window in windows for answer in hear(engine, [window])]


def hear(engine: WhisperEngine, batch: list[Window]) -> list[Heard]:
    answers = [answer for answer in engine.transcribe(batch) if isinstance(answer, Heard)]
    assert len(answers) == len(batch)
    return answers


@settings(max_examples=6)
@given(orders, cuts)
def test_neither_order_nor_company_changes_what_is_heard(
    engine: WhisperEngine, windows: list[Window], alone: list[Heard], order: list[int], cuts: set[int]
) -> None:
    for start, end in pairwise([0, *sorted(cuts), len(order)]):
        batch = order[start:end]
        for i, heard in zip(batch, hear(engine, [windows[i] for i in batch]), strict=True):
            assert_alike(heard, alone[i])


def assert_alike(heard: Heard, alone: Heard) -> None:
    assert alone.segments
    for one, other in zip(heard.segments, alone.segments, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert [word.word for word in one.words] == [word.word for word in other.words]
        times = [(word.start, word.end) for word in one.words]
        for ours, theirs in zip(times, [(word.start, word.end) for word in other.words], strict=True):
            assert ours == pytest.approx(theirs, abs=0.02)
        assert [entry.token for entry in one.logprobs] == [entry.token for entry in other.logprobs]
