"""Fifty sentences spoken by the starter voice and written down by the starter transcriber."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.encode import Encoder
from handlers.sources import fetch
from handlers.speech import hibari
from handlers.speech.types import Sentence
from handlers.starter import SPEECH, TRANSCRIPTION
from handlers.transcription.faster_whisper import load as load_whisper
from tests.handlers.speech_models import text_of
from tests.wer import word_error_rate

SUBJECTS = (
    "The old captain",
    "My younger sister",
    "Every student in the class",
    "The mayor of the town",
    "A group of travellers",
    "Our neighbour",
    "The chief engineer",
    "Nobody at the meeting",
    "The woman with the red umbrella",
    "His best friend",
)
DEEDS = (
    "walked slowly along the river and watched the boats come home.",
    "read the letter twice before putting it back into the drawer.",
    "wanted to know why the train was late again this morning.",
    "bought fresh bread, a bag of apples and some cheese at the market.",
    "closed the window because the wind was getting colder.",
)


@pytest.mark.models
@pytest.mark.slow
def test_fifty_sentences_are_understood(models_dir: Path) -> None:
    engine = hibari.load(SPEECH, fetch(SPEECH.source, Path()))
    whisper = load_whisper(replace(TRANSCRIPTION, device="cpu"), fetch(TRANSCRIPTION.source, models_dir))
    texts = [f"{subject} {deed}" for subject in SUBJECTS for deed in DEEDS]
    heard = []
    for text in texts:
        [answer] = engine.speak([Sentence(text, "heart")])
        assert isinstance(answer, np.ndarray)
        encoder = Encoder("mp3", engine.sample_rate)
        audio = encoder.write(answer) + encoder.finish()
        waveform = decode(BytesIO(audio), max_seconds=60)
        assert len(waveform) > SAMPLE_RATE
        heard.append(text_of(whisper, waveform))
    assert word_error_rate(" ".join(texts), " ".join(heard)) <= 0.05
