"""What of a checkpoint's config.json decides the computation, and the parts of a layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from handlers.linear import Int8Linear, Linear

_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})

AnyLinear = Linear | Int8Linear


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """What of config.json decides the computation."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_heads: int
    head_dim: int
    eps: float
    rope_theta: float
    vocab_size: int
    window: int | None
    tied: bool
    has_qk_norm: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "LlamaConfig | None":
        """None for a model that this file does not know how to compute."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        plain_rope = rope.get("rope_type", rope.get("type", "default")) == "default"
        heads = config.get("num_attention_heads", 0)
        if config.get("model_type") not in _MODEL_TYPES or config.get("hidden_act") != "silu" or not plain_rope:
            return None
        if config.get("use_sliding_window") and config.get("sliding_window"):
            return None  # Qwen slides in some layers only
        return cls(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            eps=config["rms_norm_eps"],
            rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10_000.0),
            vocab_size=config["vocab_size"],
            window=config.get("sliding_window") if config["model_type"] == "mistral" else None,
            tied=config.get("tie_word_embeddings", False),
            has_qk_norm=config["model_type"] == "qwen3",
        )


@dataclass(slots=True)
class Layer:
    input_norm: torch.Tensor
    qkv: AnyLinear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: AnyLinear
    mlp_norm: torch.Tensor
    gate_up: AnyLinear
    down: AnyLinear
