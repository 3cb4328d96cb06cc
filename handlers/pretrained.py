"""A transformers model and its tokenizer from a folder, on the device and in the number format that suit.

transformers is imported only when a model is loaded with it: that takes seconds.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from handlers.devices import pick_device, pick_dtype
from handlers.errors import ModelLoadError
from handlers.spec import SPLIT, ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


class Placed(Protocol):
    """A model, as far as it concerns where it runs."""

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> "torch.dtype": ...


def load_pretrained(
    auto_class: Any, spec: ModelSpec, folder: Path, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Safetensors only: other weight files can run code when they are opened.

    auto_class: AutoModel, AutoModelForCausalLM, …; options go to its from_pretrained.
    Raises ModelLoadError with one line that names the model and what is wrong.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    hide_progress_bars()
    try:
        device = pick_device("auto" if spec.device == SPLIT else spec.device)
        dtype = pick_dtype(device, spec.dtype)
        where = _split(spec) if spec.device == SPLIT else {"device_map": {"": device}}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = auto_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, **where, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise cannot_load(spec, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(f"model {spec.id}: its tokenizer has no tokenizer.json, which is needed")
    _check_that_it_fits(spec, model)
    model.requires_grad_(False)
    log_placement(spec, model)
    return model, tokenizer


def hide_progress_bars() -> None:
    """Those that transformers draws on stderr, between the lines of the log."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


def main_device(model: "PreTrainedModel") -> "torch.device":
    """Where inputs and the cache are: the first accelerator that has layers of the model, else the processor."""
    import torch

    if not is_split(model):
        return model.device
    # accelerate calls the CUDA devices by their numbers.
    names = sorted(f"cuda:{p}" if isinstance(p, int) else p for p in _places(model) - {"cpu", "disk"})
    return torch.device(next(iter(names), "cpu"))


def is_split(model: "PreTrainedModel") -> bool:
    """Whether its layers are on several devices, or on disk."""
    return len(_places(model)) > 1 or "disk" in _places(model)


def _places(model: "PreTrainedModel") -> set[int | str]:
    """What accelerate has spread the model over; nothing if it all went to one device."""
    return set(getattr(model, "hf_device_map", {}).values())


def _split(spec: ModelSpec) -> dict[str, Any]:
    """from_pretrained's options for a model over several devices. Raises ValueError for one that is not there."""
    limits = {_checked_device(name): size for name, size in (spec.max_memory or {}).items()}
    return {"device_map": "auto", "max_memory": limits or None, "offload_folder": spec.offload_folder}


def _checked_device(name: str) -> str | int:
    """By its name for accelerate."""
    import torch

    kind, _, number = pick_device(name).partition(":")
    if kind != "cuda":
        return kind
    if int(number) >= torch.cuda.device_count():
        raise ValueError(f"max_memory names {name}, but the last one here is cuda:{torch.cuda.device_count() - 1}")
    return int(number)


def _check_that_it_fits(spec: ModelSpec, model: "PreTrainedModel") -> None:
    if spec.offload_folder is None and "disk" in _places(model):
        raise ModelLoadError(
            f"model {spec.id}: does not fit into the memory of this machine, or into its max_memory; "
            "with an offload_folder, what is left over is read from disk for every step"
        )


def placement(model: Placed) -> dict[str, str]:
    """Where a model runs and in which number format, for people to read."""
    return {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}


def log_placement(spec: ModelSpec, model: Placed) -> None:
    logger.info("%s runs on %s in %s", spec.id, *placement(model).values())


def max_model_len(spec: ModelSpec, trained: int | None, positions: int | None) -> int:
    """Tokens of context: what the description says, else what the model was trained for, else what it has room for.

    Raises ModelLoadError when the description asks for more than `positions`.
    """
    if spec.max_model_len and positions and spec.max_model_len > positions:
        raise ModelLoadError(
            f"model {spec.id}: max_model_len {spec.max_model_len} is above the model's own {positions}"
        )
    known = spec.max_model_len or trained or positions
    if known is None:
        raise ModelLoadError(f"model {spec.id}: its config does not tell its context length; set max_model_len")
    return known


def cannot_load(spec: ModelSpec, error: Exception) -> ModelLoadError:
    """The first line of what a library said; the rest is for the log."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ModelLoadError(f"model {spec.id}: cannot be loaded from {spec.source.partition('#')[0]}: {reason}")
