"""Speech models of transformers, chosen by what their config says they are."""

import json
from pathlib import Path
from typing import Literal

from handlers.errors import ModelLoadError
from handlers.pretrained import cannot_load, load_pretrained
from handlers.spec import ModelSpec
from handlers.transcription.engine import Engine


def engine_for(spec: ModelSpec, folder: Path) -> Literal["faster-whisper", "transformers"]:
    """The engine that the description names; with "auto" the one that the files are for."""
    if spec.engine == "auto":
        converted = (folder / "model.bin").is_file()
        return "transformers" if model_type(folder) and not converted else "faster-whisper"
    return "transformers" if spec.engine == "transformers" else "faster-whisper"


def load(spec: ModelSpec, folder: Path) -> Engine:
    """Open a Whisper model that transformers has saved. Raises ModelLoadError with one line that says what is wrong."""
    from transformers import AutoFeatureExtractor, WhisperForConditionalGeneration

    from handlers.transcription.whisper import WhisperOnTorch

    if (kind := model_type(folder)) != "whisper":
        raise ModelLoadError(
            f"model {spec.id}: of the speech models of transformers, Whisper is served, and this is {kind!r}; "
            "choose a Whisper model"
        )
    model, tokenizer = load_pretrained(WhisperForConditionalGeneration, spec, folder)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        return WhisperOnTorch(model.eval(), tokenizer, extractor)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise cannot_load(spec, error) from error


def model_type(folder: Path) -> str | None:
    """What the folder's config.json calls the model; None where transformers did not save it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None
