"""GGUF weights as safetensors, once.

Reading a GGUF file dequantizes every tensor and rebuilds the tokenizer, which takes half a minute for even a small
model; the converted copy loads in a second.
"""

import logging
import shutil
from pathlib import Path

from filelock import FileLock

from handlers.errors import ModelLoadError
from handlers.pretrained import hide_progress_bars

logger = logging.getLogger(__name__)

_CONVERTED = "safetensors"


def needs_conversion(folder: Path) -> bool:
    """Whether the folder holds a GGUF file whose converted copy is not there yet."""
    return _gguf_file(folder) is not None and not (folder / _CONVERTED).is_dir()


def prepare(folder: Path) -> Path:
    """The folder to load from: itself, or the converted copy inside it, made now if need be. Raises ModelLoadError.

    The copy is written beside its final name and renamed, so an interrupted conversion leaves nothing half done. Of two
    processes at once, the second waits for the first.
    """
    source = _gguf_file(folder)
    if source is None:
        return folder
    target = folder / _CONVERTED
    if not target.is_dir():
        logger.info("converting %s to safetensors; this happens once", source.name)
        _convert(source, target)
    return target


def _gguf_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelLoadError(f"{folder} holds {len(files)} GGUF files; keep the one to serve")
    return files[0] if files and not (folder / "config.json").exists() else None


def _convert(source: Path, target: Path) -> None:
    """In a folder aside, of which one process at a time makes use: what it finds there is of one that was killed."""
    aside = source.parent / f".{target.name}.partial"
    try:
        with FileLock(source.parent / f".{target.name}.lock"):
            if target.is_dir():
                logger.info("another process has converted %s", source.name)
                return
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            try:
                _write(source, aside)
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{source} cannot be converted; fetch it again or use safetensors weights") from error


def _write(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    hide_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
