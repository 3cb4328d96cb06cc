"""From hidden states to one vector a text, as the model's sentence-transformers files say.

modules.json lists the steps after the model itself: Pooling, and any of Dense and Normalize. The forms of each
configuration are those that sentence-transformers writes (https://sbert.net/docs/package_reference).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

Step = Callable[[Tensor], Tensor]


def _weighted_mean(hidden: Tensor) -> Tensor:
    """Later tokens count more: the first once, the second twice, …"""
    weights = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)
    return torch.einsum("nld,l->nd", hidden, weights / weights.sum())


# In the order in which sentence-transformers joins their vectors where several are on.
_MODES: Mapping[str, Step] = {
    "cls": lambda hidden: hidden[:, 0],
    "max": lambda hidden: hidden.amax(dim=1),
    "mean": lambda hidden: hidden.mean(dim=1),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(dim=1) / hidden.shape[1] ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda hidden: hidden[:, -1],
}
_OLD_NAMES = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
_DENSE_ACTIVATIONS: Mapping[str, Step] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """modes: ways of pooling, whose vectors are joined. steps: what follows, on vectors [texts, dimensions].

    normalizes: the model's last step brings vectors to length 1. It is no part of `steps`, as it follows the cut.
    """

    modes: Sequence[Step]
    steps: Sequence[Step]
    normalizes: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """Texts of equal length, [texts, tokens, hidden], to float32 [texts, dimensions]."""
        hidden = hidden.float()
        vectors = torch.cat([mode(hidden) for mode in self.modes], dim=-1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def dimensions(self, hidden_size: int, device: torch.device) -> int:
        return self(torch.zeros(1, 1, hidden_size, device=device)).shape[-1]


def load_pooling(folder: Path, device: torch.device) -> Pooling:
    """What the folder's modules.json states; mean and normalised without one.

    Raises OSError, ValueError, KeyError or SafetensorError.
    """
    file = folder / "modules.json"
    if not file.exists():
        return Pooling([_MODES["mean"]], [], normalizes=True)
    modules = [(module["type"].rpartition(".")[2], folder / module["path"]) for module in json.loads(file.read_text())]
    kinds = [kind for kind, _ in modules]
    if unknown := set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"}:
        raise ValueError(f"modules.json asks for {', '.join(sorted(unknown))}, which is not supported")
    if kinds[:2] != ["Transformer", "Pooling"] or len(set(kinds[:2]) & set(kinds[2:])):
        raise ValueError(f"modules.json lists {', '.join(kinds)}; first comes one Transformer, then one Pooling")
    steps = modules[2:]
    if normalizes := kinds[-1] == "Normalize":
        steps = steps[:-1]
    return Pooling(_modes(modules[1][1]), [_step(kind, path, device) for kind, path in steps], normalizes)


def _modes(folder: Path) -> list[Step]:
    config = json.loads((folder / "config.json").read_text())
    names = config.get("pooling_mode") or _old_modes(config)
    names = [names] if isinstance(names, str) else names
    if not names or not set(names) <= set(_MODES):
        raise ValueError(f"pooling {', '.join(names) or 'without a mode'} is not supported")
    return [_MODES[name] for name in names]


def _old_modes(config: Mapping[str, Any]) -> list[str]:
    """From one switch a mode, as files before sentence-transformers 5.4 have it; unknown ones come last."""
    on = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    names = [_OLD_NAMES.get(name, name) for name in on]
    return sorted(names, key=lambda name: list(_MODES).index(name) if name in _MODES else len(_MODES))


def _step(kind: str, folder: Path, device: torch.device) -> Step:
    return _normalize if kind == "Normalize" else _dense(folder, device)


def _normalize(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def _dense(folder: Path, device: torch.device) -> Step:
    config = json.loads((folder / "config.json").read_text())
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    if name not in _DENSE_ACTIVATIONS or config.get("use_residual", False):
        raise ValueError(f"{folder.name} has activation {name} or a residual, which is not supported")
    tensors = {key: tensor.float().to(device) for key, tensor in load_file(folder / "model.safetensors").items()}
    weight, bias, activation = tensors["linear.weight"], tensors.get("linear.bias"), _DENSE_ACTIVATIONS[name]
    return lambda vectors: activation(F.linear(vectors, weight, bias))
