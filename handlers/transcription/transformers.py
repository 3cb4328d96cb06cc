"""Speech models of transformers, chosen by what their config says they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers.devices import pick_device, pick_dtype
from handlers.errors import ModelLoadError
from handlers.pretrained import cannot_load, hide_progress_bars, load_pretrained, log_placement
from handlers.spec import ModelSpec
from handlers.transcription.engine import SAMPLE_RATE, Engine

# Models of AutoModelForSpeechSeq2Seq that need nothing but audio. Others want a language, a task or a chat's template.
_SEQ2SEQ = ("moonshine", "speech_to_text", "speech-encoder-decoder")


def load(spec: ModelSpec, folder: Path) -> Engine:
    """Open a model that transformers has saved. Raises ModelLoadError with one line that says what is wrong."""
    config = _config(folder)
    kinds = config.get("architectures") or [f"a {config.get('model_type', 'model without a type')}"]
    if "WhisperForConditionalGeneration" in kinds:
        return _load_whisper(spec, folder)
    if _is_ctc(config):
        return _load_ctc(spec, folder)
    if config.get("model_type") in _SEQ2SEQ:
        return _load_seq2seq(spec, folder)
    raise ModelLoadError(
        f"model {spec.id}: of the speech models of transformers, Whisper, Moonshine, Speech2Text and those for CTC are "
        f"served, and this is {kinds[0]}; choose one of those"
    )


def takes_prompts(folder: Path) -> bool:
    """Whether the model that `load` opens there does."""
    config = _config(folder)
    return not _is_ctc(config) and config.get("model_type") not in _SEQ2SEQ


def _is_ctc(config: Mapping[str, Any]) -> bool:
    return any(kind.endswith("ForCTC") for kind in config.get("architectures") or ())


def _load_whisper(spec: ModelSpec, folder: Path) -> Engine:
    from transformers import AutoFeatureExtractor, WhisperForConditionalGeneration

    from handlers.transcription.whisper import WhisperOnTorch

    model, tokenizer = load_pretrained(WhisperForConditionalGeneration, spec, folder)
    model.train(False)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        return WhisperOnTorch(model, tokenizer, extractor)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise cannot_load(spec, error) from error


def _load_ctc(spec: ModelSpec, folder: Path) -> Engine:
    """Their tokenizers are lists of letters, without a tokenizer.json."""
    from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    from handlers.transcription.ctc import CTCOnTorch

    model, tokenizer, extractor = _open(spec, folder, AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor)
    if model.main_input_name != "input_values":
        raise ModelLoadError(f"model {spec.id}: does not take plain audio; choose a Wav2Vec2 or HuBERT model")
    return CTCOnTorch(model, tokenizer, extractor)


def _load_seq2seq(spec: ModelSpec, folder: Path) -> Engine:
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

    from handlers.transcription.seq2seq import Seq2SeqOnTorch

    model, tokenizer, extractor = _open(spec, folder, AutoModelForSpeechSeq2Seq, AutoTokenizer, AutoFeatureExtractor)
    try:
        return Seq2SeqOnTorch(model, tokenizer, extractor)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise cannot_load(spec, error) from error


def _open(
    spec: ModelSpec, folder: Path, model_class: Any, tokenizer_class: Any, extractor_class: Any
) -> tuple[Any, Any, Any]:
    """With tokenizers of any kind. Raises ModelLoadError."""
    hide_progress_bars()
    try:
        device = pick_device(spec.device)
        dtype = pick_dtype(device, spec.dtype)
        extractor = extractor_class.from_pretrained(folder)
        tokenizer = tokenizer_class.from_pretrained(folder)
        model = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, device_map={"": device})
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise cannot_load(spec, error) from error
    if extractor.sampling_rate != SAMPLE_RATE:
        raise ModelLoadError(
            f"model {spec.id}: hears audio at {extractor.sampling_rate} Hz; choose a model for {SAMPLE_RATE} Hz"
        )
    model.train(False)
    log_placement(spec, model)
    return model, tokenizer, extractor


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, if it says which model of transformers it is for; else empty."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and "model_type" in config else {}
