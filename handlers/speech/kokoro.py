"""kokoro-onnx: the Kokoro voices on onnxruntime, of several languages. An extra, which is imported only when used."""

import logging
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxruntime import InferenceSession, SessionOptions

from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec
from handlers.speech.sentences import split, without_control
from handlers.speech.types import Script, Sentence, unreadable
from handlers.speech.voices import shared_out

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000

_SLOWEST, _FASTEST = 0.5, 2.0

# Characters of a sentence; the model takes up to 510 phonemes at once.
_MOST = 300
_CHARACTERS_PER_SECOND = 14

# A voice is named by its language and gender: af_heart is an American woman. As espeak calls the languages.
_LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "a": "en-us",
        "b": "en-gb",
        "e": "es",
        "f": "fr-fr",
        "h": "hi",
        "i": "it",
        "j": "ja",
        "p": "pt-br",
        "z": "cmn",
    }
)
# By gender, accent and age as OpenAI's voices sound; five have the same name here.
_PREFERRED: Mapping[str, str] = MappingProxyType(
    {
        "alloy": "af_alloy",
        "ash": "am_fenrir",
        "ballad": "bm_george",
        "cedar": "am_michael",
        "coral": "af_kore",
        "echo": "am_echo",
        "fable": "bm_fable",
        "marin": "af_heart",
        "nova": "af_nova",
        "onyx": "am_onyx",
        "sage": "bf_emma",
        "shimmer": "af_bella",
        "verse": "bm_lewis",
    }
)


class KokoroEngine:
    """One model with all of its voices. For one thread.

    kokoro: a kokoro_onnx.Kokoro. paces: whether the model speaks at any pace, or only at its own.
    """

    device = "cpu"
    sample_rate = SAMPLE_RATE
    batches = False

    def __init__(self, kokoro: Any, *, dtype: str, paces: bool) -> None:
        self._kokoro = kokoro
        self._paces = paces
        self.dtype = dtype
        self.voices = _voices_in_force(kokoro.get_voices())

    def prepare(self, text: str) -> Script:
        """The text in sentences; espeak puts numbers and signs into words of the voice's language."""
        sentences = tuple(part for part in split(without_control(text), _MOST) if any(map(_has_sound, part)))
        return Script(sentences, sum(map(len, sentences)) / _CHARACTERS_PER_SECOND)

    def speak(self, sentences: Sequence[Sentence]) -> Sequence[Waveform | Exception]:
        """One waveform a sentence; InvalidRequest for one that espeak has no phonemes for."""
        return [self._speak(sentence) for sentence in sentences]

    def _speak(self, sentence: Sentence) -> Waveform | InvalidRequest:
        pace = min(max(sentence.speed, _SLOWEST), _FASTEST) if self._paces else 1.0
        phonemes = self._kokoro.tokenizer.phonemize(sentence.text, _language(sentence.voice))
        if not any(map(str.isalpha, phonemes)):
            return unreadable(sentence.text)
        waveform: Waveform
        waveform, _ = self._kokoro.create(phonemes, sentence.voice, speed=pace, is_phonemes=True)
        return waveform if pace == sentence.speed else change_tempo(waveform, SAMPLE_RATE, sentence.speed / pace)


def _voices_in_force(speakers: Sequence[str]) -> Mapping[str, str]:
    """All by their own names; OpenAI's names mean those that sound like them, or are dealt out to the English ones."""
    english = [speaker for speaker in speakers if _language(speaker).startswith("en")]
    preferred = {name: speaker for name, speaker in _PREFERRED.items() if speaker in speakers}
    return shared_out(english or speakers) | preferred | {speaker: speaker for speaker in speakers}


def _language(speaker: str) -> str:
    return _LANGUAGES.get(speaker[0], "en-us")


def load(spec: ModelSpec, folder: Path) -> KokoroEngine:
    """Open the one `.onnx` and the one `.bin` in `folder`, and speak once. Nothing is downloaded.

    Raises ModelLoadError.
    """
    try:
        from kokoro_onnx import Kokoro
    except ImportError as error:
        raise ModelLoadError(
            f"model {spec.id}: the engine kokoro is not installed; install the gateway with its extra `kokoro`"
        ) from error
    started = time.monotonic()
    weights = _only_file(spec, folder, "onnx", "the model, such as kokoro-v1.0.onnx")
    voices = _only_file(spec, folder, "bin", "its voices, such as voices-v1.0.bin")
    try:
        session = _session(weights)
        engine = KokoroEngine(
            Kokoro.from_session(session, str(voices)), dtype=_dtype(weights), paces=_takes_any_pace(session)
        )
        [answer] = engine.speak([Sentence("One.", next(iter(engine.voices.values())))])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelLoadError(f"model {spec.id}: cannot be loaded: {' '.join(str(error).split())}") from error
    if isinstance(answer, Exception):
        raise ModelLoadError(f"model {spec.id}: cannot be loaded: it does not speak") from answer
    took = time.monotonic() - started
    logger.info("%s runs on cpu in %s, loaded in %.1f s", spec.id, engine.dtype, took)
    return engine


def _only_file(spec: ModelSpec, folder: Path, ending: str, content: str) -> Path:
    files = sorted(folder.glob(f"*.{ending}"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "there is none"
        raise ModelLoadError(f"model {spec.id}: its folder needs one file .{ending}, {content}; found: {found}")
    return files[0]


def _session(weights: Path) -> InferenceSession:
    options = SessionOptions()
    # Threads that spin while they wait would take the cores from the encoder and the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])


def _takes_any_pace(session: InferenceSession) -> bool:
    """Some exports take whole numbers alone."""
    return any(node.name == "speed" and node.type == "tensor(float)" for node in session.get_inputs())


def _dtype(weights: Path) -> str:
    """By the names of the published files, as inputs and outputs are float32 in all of them."""
    return next((dtype for mark, dtype in (("int8", "int8"), ("fp16", "float16")) if mark in weights.name), "float32")


def _has_sound(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNS"
