"""hibari-tts: small English voices on onnxruntime, about a hundred times as fast as speech."""

import logging
import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hibari import SAMPLE_RATE, Hibari
from hibari.voices import VOICES, voice_path

from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec
from handlers.speech.voices import DEFAULT, voices_in_force

logger = logging.getLogger(__name__)

# The model slurs when it hurries: at 2 every sixth word is misheard, at 1.25 sped up by change_tempo to 2, none.
_SLOWEST, _FASTEST = 0.5, 1.25

# Time grows with the cube of a word's length (64 letters 0.1 s, 256 letters 5 s), and numbers of more than 36 digits
# fail. The longest English words have 28 letters.
_LONG_WORD = re.compile(r"\S{32}(?=\S)")

# The phonemes that the model was made for at once; memory grows with their number.
_MAX_PHONEMES = 400


class HibariEngine:
    """One model a voice, opened when first asked for. For one thread.

    voices: names that may be asked for, each with the local voice that speaks.
    """

    device = "cpu"
    dtype = "int8"
    sample_rate: int = SAMPLE_RATE

    def __init__(self, files: Mapping[str, Path]) -> None:
        """files: the model file of each local voice."""
        self._files = files
        self._models: dict[str, Hibari] = {}
        self.voices = voices_in_force(files)

    def speak(self, text: str, voice: str, speed: float) -> Iterator[Waveform]:
        """A sentence at a time, always the same for the same text. Nothing at all if no part can be pronounced.

        voice: a local one. speed: 0.25 to 4. Raises InvalidRequest for what the dictionaries stumble over.
        """
        model = self._model(voice)
        pace = min(max(speed, _SLOWEST), _FASTEST)
        for phonemes in _phonemes(model, text):
            waveform = model.from_phonemes(phonemes, speed=pace, seed=0)
            yield waveform if pace == speed else change_tempo(waveform, SAMPLE_RATE, speed / pace)

    def _model(self, voice: str) -> Hibari:
        if voice not in self._models:
            self._models[voice] = Hibari(voice, model=str(self._files[voice]), g2p=self._pronunciation(voice))
        return self._models[voice]

    def _pronunciation(self, voice: str) -> object | None:
        """The dictionaries, about 100 MB, which voices of one accent share."""
        british = VOICES[voice]["british"]
        return next((model.g2p for name, model in self._models.items() if VOICES[name]["british"] == british), None)


def load(spec: ModelSpec, folder: Path) -> HibariEngine:
    """Open the voices in `folder` and those hibari brings or has in its cache, and speak once. Nothing is downloaded.

    Raises ModelLoadError.
    """
    started = time.monotonic()
    files = {name: file for name in VOICES if (file := _voice_file(name, folder))}
    engine = HibariEngine(files)
    try:
        for _ in engine.speak("Hello.", DEFAULT, speed=1.0):
            pass
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelLoadError(
            f"{spec.id}: the voice {DEFAULT} cannot be opened: {' '.join(str(error).split())}; "
            "install hibari-tts again, or take the file out of the source's folder"
        ) from error
    logger.info(
        "%s runs on cpu in int8 with the voices %s, loaded in %.1f s",
        spec.id,
        ", ".join(files),
        time.monotonic() - started,
    )
    return engine


def _voice_file(voice: str, folder: Path) -> Path | None:
    if (file := folder / str(VOICES[voice]["file"])).is_file():
        return file
    try:
        return Path(voice_path(voice, download_missing=False))
    except FileNotFoundError:
        return None


def _phonemes(model: Hibari, text: str) -> Iterator[str]:
    """What the model can say at once: sentences, or parts of long ones. What nobody can pronounce is left out."""
    for sentence in model.split_sentences(_LONG_WORD.sub(r"\g<0> ", text)):
        for phrase in _pronounced(model, sentence):
            for phonemes in textwrap.wrap(phrase, _MAX_PHONEMES, break_on_hyphens=False):
                if any(symbol.isalpha() for symbol in phonemes if symbol in model.vocab):
                    yield phonemes


def _pronounced(model: Hibari, sentence: str) -> Sequence[str]:
    try:
        phrases: Sequence[str] = model.phonemize(sentence)
    except (ValueError, LookupError) as error:  # rare number signs, such as a digit with a comma in one character
        raise InvalidRequest(
            f"The voice cannot read {textwrap.shorten(sentence, 60)!r}. Write its numbers and signs in words.", "input"
        ) from error
    return phrases
