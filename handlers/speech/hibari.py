"""hibari-tts: small English voices on onnxruntime, about a hundred times as fast as speech."""

import logging
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from hibari import SAMPLE_RATE, Hibari
from hibari.voices import VOICES, voice_path

from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec
from handlers.speech.english import has_sound, spell
from handlers.speech.sentences import split
from handlers.speech.types import Script, Sentence, unreadable
from handlers.speech.voices import DEFAULT, voices_in_force

logger = logging.getLogger(__name__)

# The model slurs when it hurries: at 2 every sixth word is misheard, at 1.25 sped up by change_tempo to 2, none.
_SLOWEST, _FASTEST = 0.5, 1.25

# Characters of a sentence; it takes the voice about a tenth of a second to speak so many.
_MOST = 300

# The phonemes that the model was made for at once; memory grows with their number.
_MAX_PHONEMES = 400

# The voice says so many characters a second; a digit is as long as a short word.
_CHARACTERS_PER_SECOND = 14
_CHARACTERS_PER_DIGIT = 8


class HibariEngine:
    """One model a voice, opened when first asked for. For one thread.

    voices: names that may be asked for, each with the local voice that speaks.
    """

    device = "cpu"
    dtype = "int8"
    sample_rate: int = SAMPLE_RATE
    batches = False

    def __init__(self, files: Mapping[str, Path]) -> None:
        """files: the model file of each local voice."""
        self._files = files
        self._models: dict[str, Hibari] = {}
        self.voices = voices_in_force(files)

    def prepare(self, text: str) -> Script:
        """Raises InvalidRequest naming the characters that have neither a sound nor a name."""
        spelling = spell(text)
        sentences = tuple(sentence for sentence in split(spelling.text, _MOST) if has_sound(sentence))
        length = sum(_CHARACTERS_PER_DIGIT if char.isdigit() else 1 for sentence in sentences for char in sentence)
        return Script(sentences, length / _CHARACTERS_PER_SECOND, spelling.scripts)

    def speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        """One waveform a sentence, always the same for the same one; InvalidRequest for one that it stumbles over."""
        return [self._speak(sentence) for sentence in sentences]

    def _speak(self, sentence: Sentence) -> Waveform | InvalidRequest:
        model = self._model(sentence.voice)
        pace = min(max(sentence.speed, _SLOWEST), _FASTEST)
        try:
            pieces = [model.from_phonemes(phonemes, speed=pace, seed=0) for phonemes in _phonemes(model, sentence.text)]
        except InvalidRequest as refusal:
            return refusal
        if not pieces:
            return unreadable(sentence.text)
        waveform = np.concatenate(pieces)
        return waveform if pace == sentence.speed else change_tempo(waveform, SAMPLE_RATE, sentence.speed / pace)

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
        engine.speak([Sentence("Hello.", DEFAULT)])
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


def _phonemes(model: Hibari, sentence: str) -> Iterator[str]:
    """What the model can say at once. Raises InvalidRequest for what the dictionaries stumble over."""
    try:
        phonemes = model.g2p(sentence)
    except (ValueError, LookupError) as error:
        raise unreadable(sentence) from error
    for part in textwrap.wrap(phonemes, _MAX_PHONEMES, break_on_hyphens=False):
        if any(symbol.isalpha() for symbol in part if symbol in model.vocab):
            yield part
