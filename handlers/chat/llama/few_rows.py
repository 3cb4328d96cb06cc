"""A step in which a few rows generate: kernels that do several operations in one call.

At one row a step is a thousand operations of PyTorch, each of which takes longer to begin than to compute.
"""

from collections.abc import Sequence

import numpy as np
import torch

from handlers.chat.llama.config import Layer, LlamaConfig
from handlers.chat.packed import PackedBatch
from handlers.kernels.attention import attend_rows
from handlers.kernels.elementwise import normalize
from handlers.kernels.int8 import add_product
from handlers.kernels.llama import after_attention, before_attention
from handlers.linear import Int8Linear

_NONE = np.empty(0, np.float32)


class FewRows:
    """The forward pass with 8-bit weights for a batch without prompts."""

    def __init__(self, config: LlamaConfig, layers: Sequence[Layer], norm: torch.Tensor, head: Int8Linear) -> None:
        self._config = config
        self._layers = [_Kernels(layer, config.eps) for layer in layers]
        self._norm = norm.numpy()
        self._head = head

    def forward(self, batch: PackedBatch, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Logits, [rows, vocab size]. hidden: [rows, size]; cos, sin: [rows, 1, head size]."""
        config, rows = self._config, len(hidden)
        states = hidden.numpy().copy()
        rotation = cos[:, 0].numpy(), sin[:, 0].numpy()
        query = np.empty((rows, config.heads, config.head_dim), np.float32)
        key = np.empty((rows, config.key_heads, config.head_dim), np.float32)
        value = np.empty_like(key)
        attended = np.empty_like(query)
        normed = np.empty_like(states)
        groups = [
            (slice(group.start, group.stop), group.bucket.slab.numpy(), group.lengths.numpy())
            for group in batch.decodes
        ]
        for i, layer in enumerate(self._layers):
            before_attention(states, *layer.before, *rotation, normed, query, key, value)
            for part, slab, lengths in groups:
                attend_rows(query[part], key[part], value[part], slab, i, lengths, config.window or 0, attended[part])
            after_attention(attended.reshape(rows, -1), states, *layer.after, normed)
        normalize(states, self._norm, config.eps, normed)
        logits = np.zeros((rows, config.vocab_size), np.float32)
        add_product(normed, self._head.weight, self._head.scales, logits)
        return torch.from_numpy(logits)


class _Kernels:
    """What the kernels take of a layer, in their order."""

    def __init__(self, layer: Layer, eps: float) -> None:
        qkv, out, gate_up, down = _int8(layer.qkv), _int8(layer.out), _int8(layer.gate_up), _int8(layer.down)
        query_norm = _NONE if layer.query_norm is None else layer.query_norm.numpy()
        key_norm = _NONE if layer.key_norm is None else layer.key_norm.numpy()
        self.before = (layer.input_norm.numpy(), eps, qkv.weight, qkv.scales, qkv.bias, query_norm, key_norm)
        self.after = (
            out.weight,
            out.scales,
            layer.mlp_norm.numpy(),
            eps,
            gate_up.weight,
            gate_up.scales,
            down.weight,
            down.scales,
        )


def _int8(linear: object) -> Int8Linear:
    assert isinstance(linear, Int8Linear)
    return linear
