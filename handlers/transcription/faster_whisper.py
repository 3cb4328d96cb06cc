"""Whisper on CTranslate2, by way of faster-whisper."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import get_speech_timestamps

from batching.job import CancelToken
from handlers.audio.decode import SAMPLE_RATE
from handlers.audio.waveform import Waveform
from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec
from handlers.transcription.types import Transcript, TranscriptionRequest

logger = logging.getLogger(__name__)

# A spectrogram is made of a whole window at once and takes about 1 MB a second. In smaller windows Whisper would work
# more often on a last half minute that is mostly padding.
_WINDOW_SECONDS = 120
_CUT_SEARCH_SECONDS = 30
_CUT_STEP_SECONDS = 0.1

# Whisper's own ladder (Radford et al. 2022, section 4.5): hotter while the text repeats itself or is improbable.
_FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

# On noisy speech tiny.en makes as many errors with 5 beams as with 1, and takes 1.7 times as long.
_BEAM_SIZE = 1

_FILES = ("model.bin", "config.json", "tokenizer.json")


class WhisperEngine:
    """One model, for one thread. languages: the ISO-639-1 codes it knows."""

    def __init__(self, model: WhisperModel, device: str, dtype: str) -> None:
        self._model = model
        self.device = device
        self.dtype = dtype
        self.languages: Sequence[str] = model.supported_languages

    def transcribe(self, waveform: Waveform, request: TranscriptionRequest, cancel: CancelToken) -> Transcript:
        """The text of 16 kHz audio. Once cancelled it stops at the next segment, and the text is unfinished."""
        language = request.language or (self.languages[0] if len(self.languages) == 1 else None)
        texts = []
        for speech in filter(len, map(_speech_in, _windows(waveform))):
            text, language = self._transcribe_speech(speech, request, language, cancel)
            texts.append(text)
            if cancel.cancelled:
                break
        return Transcript(" ".join(filter(None, texts)), language, len(waveform) / SAMPLE_RATE)

    def warm_up(self) -> None:
        silence = np.zeros(SAMPLE_RATE, np.float32)
        _speech_in(silence)
        segments, _ = self._model.transcribe(silence, beam_size=_BEAM_SIZE, temperature=0.0)
        list(segments)

    def _transcribe_speech(
        self, speech: Waveform, request: TranscriptionRequest, language: str | None, cancel: CancelToken
    ) -> tuple[str, str]:
        """Text and language; the language is detected where None is given."""
        segments, info = self._model.transcribe(
            speech,
            language=language,
            initial_prompt=request.prompt or None,
            temperature=request.temperature or _FALLBACK_TEMPERATURES,
            beam_size=_BEAM_SIZE,
        )
        texts = []
        for segment in segments:
            texts.append(segment.text)
            if cancel.cancelled:
                break
        return "".join(texts).strip(), info.language


def load(spec: ModelSpec, folder: Path) -> WhisperEngine:
    """Open a CTranslate2 Whisper model and run it once. Raises ModelLoadError."""
    started = time.monotonic()
    # faster-whisper would look on the model hub for what the folder lacks.
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ModelLoadError(
            f"{spec.id}: {folder} has no {', '.join(missing)}; "
            "its source must be a Whisper model converted for CTranslate2 (ct2-transformers-converter)"
        )
    device, _, index = _pick_device(spec).partition(":")
    compute_type = spec.dtype if spec.dtype != "auto" else "int8" if device == "cpu" else "float16"
    try:
        model = WhisperModel(str(folder), device=device, device_index=int(index or 0), compute_type=compute_type)
        engine = WhisperEngine(model, device, compute_type)
        engine.warm_up()
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ModelLoadError(
            f"{spec.id}: cannot run {folder} on {device} in {compute_type}: {_one_line(error)}; "
            "fetch the files again, or choose another dtype or device"
        ) from error
    logger.info("%s runs on %s in %s, loaded in %.1f s", spec.id, device, compute_type, time.monotonic() - started)
    return engine


def _pick_device(spec: ModelSpec) -> str:
    """CTranslate2 counts the CUDA devices itself, so that torch need not be imported for it."""
    cuda = ctranslate2.get_cuda_device_count() > 0
    if spec.device == "auto":
        return "cuda" if cuda else "cpu"
    if spec.device == "mps":
        logger.warning("%s runs on the CPU: CTranslate2 does not know mps", spec.id)
        return "cpu"
    if spec.device.startswith("cuda") and not cuda:
        raise ModelLoadError(f"{spec.id}: there is no CUDA device here; set its device to cpu or auto")
    return spec.device


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _windows(waveform: Waveform) -> Iterator[Waveform]:
    """Stretches of at most two minutes, cut where it is quietest."""
    window, search = _WINDOW_SECONDS * SAMPLE_RATE, _CUT_SEARCH_SECONDS * SAMPLE_RATE
    start = 0
    while len(waveform) - start > window:
        end = start + window
        end = end - search + _quietest(waveform[end - search : end])
        yield waveform[start:end]
        start = end
    yield waveform[start:]


def _quietest(waveform: Waveform) -> int:
    """The sample in the middle of the quietest tenth of a second."""
    step = int(_CUT_STEP_SECONDS * SAMPLE_RATE)
    energy = np.square(waveform.reshape(-1, step)).mean(axis=1)
    return int(energy.argmin()) * step + step // 2


def _speech_in(window: Waveform) -> Waveform:
    """The stretches with a voice in them (Silero VAD), joined. Whisper makes words up where nobody speaks."""
    stretches = [window[span["start"] : span["end"]] for span in get_speech_timestamps(window)]
    return np.concatenate([np.zeros(0, np.float32), *stretches])
