"""Speech models of transformers, chosen by what their config says they are."""

import json
from pathlib import Path
from typing import Any

from handlers.devices import pick_device, pick_dtype
from handlers.errors import ModelLoadError
from handlers.pretrained import cannot_load, load_pretrained, log_placement
from handlers.spec import ModelSpec
from handlers.transcription.engine import SAMPLE_RATE, Engine


def load(spec: ModelSpec, folder: Path) -> Engine:
    """Open a model that transformers has saved. Raises ModelLoadError with one line that says what is wrong."""
    config = _config(folder)
    kinds = config.get("architectures") or [f"a {config.get('model_type', 'model without a type')}"]
    if "WhisperForConditionalGeneration" in kinds:
        return _load_whisper(spec, folder)
    if is_ctc(folder):
        return _load_ctc(spec, folder)
    raise ModelLoadError(
        f"model {spec.id}: of the speech models of transformers, Whisper and those for CTC are served, and this is "
        f"{kinds[0]}; choose one of those"
    )


def is_ctc(folder: Path) -> bool:
    return any(kind.endswith("ForCTC") for kind in _config(folder).get("architectures") or ())


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

    try:
        device = pick_device(spec.device)
        dtype = pick_dtype(device, spec.dtype)
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCTC.from_pretrained(folder, dtype=dtype, use_safetensors=True, device_map={"": device})
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise cannot_load(spec, error) from error
    if model.main_input_name != "input_values" or extractor.sampling_rate != SAMPLE_RATE:
        raise ModelLoadError(f"model {spec.id}: does not take plain audio at 16 kHz; choose a Wav2Vec2 or HuBERT model")
    model.train(False)
    log_placement(spec, model)
    return CTCOnTorch(model, tokenizer, extractor)


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, if it says which model of transformers it is for; else empty."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and "model_type" in config else {}
