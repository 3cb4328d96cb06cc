"""The forward pass in compiled kernels, with 8-bit weights, on the processor.

A step of PyTorch is a thousand operations, each of which takes longer to begin than to compute for a few rows.
"""

from collections.abc import Sequence

import numpy as np
import torch

from handlers.chat.llama.config import Layer, LlamaConfig
from handlers.chat.packed import PackedBatch, attend_chunks
from handlers.kernels.attention import attend_rows
from handlers.kernels.elementwise import normalize
from handlers.kernels.llama import after_attention, before_attention
from handlers.kernels.product import add_product
from handlers.kernels.types import Floats
from handlers.linear import Int8Linear

_NONE = np.empty(0, np.float32)


class CompiledForward:
    """What LlamaModel.forward computes, between the embeddings and the logits."""

    def __init__(self, config: LlamaConfig, layers: Sequence[Layer], norm: torch.Tensor, head: Int8Linear) -> None:
        self._config = config
        self._layers = [_Kernels(layer, config.eps) for layer in layers]
        self._norm = norm.numpy()
        self._head = head

    def __call__(self, batch: PackedBatch, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Logits, [wanted, vocab size]. hidden: [tokens, size], which it changes; cos, sin: [tokens, 1, head size]."""
        config, states = self._config, hidden.numpy()
        rotation = cos[:, 0].numpy(), sin[:, 0].numpy()
        query = np.empty((len(states), config.heads, config.head_dim), np.float32)
        key = np.empty((len(states), config.key_heads, config.head_dim), np.float32)
        value, attended, normed = np.empty_like(key), np.empty_like(query), np.empty_like(states)
        scale, window = config.head_dim**-0.5, config.window
        tensors = torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(value)
        attended_tensor = torch.from_numpy(attended)
        groups = [
            (slice(group.start, group.stop), group.bucket.slab.numpy(), group.lengths.numpy())
            for group in batch.decodes
        ]
        for i, layer in enumerate(self._layers):
            before_attention(states, *layer.before, *rotation, normed, query, key, value)
            for part, slab, lengths in groups:
                attend_rows(query[part], key[part], value[part], slab, i, lengths, window or 0, attended[part])
            attend_chunks(batch, i, *tensors, scale, window=window, out=attended_tensor)
            after_attention(attended.reshape(len(states), -1), states, *layer.after, normed)
        return self._logits(states[batch.logits_at.numpy()])

    def _logits(self, states: Floats) -> torch.Tensor:
        normed = np.empty_like(states)
        normalize(states, self._norm, self._config.eps, normed)
        logits = np.zeros((len(states), self._config.vocab_size), np.float32)
        add_product(normed, self._head.panels, self._head.scales, logits)
        return torch.from_numpy(logits)


class _Kernels:
    """What the kernels take of a layer, in their order."""

    def __init__(self, layer: Layer, eps: float) -> None:
        qkv, out, gate_up, down = (_int8(linear) for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
        query_norm = _NONE if layer.query_norm is None else layer.query_norm.numpy()
        key_norm = _NONE if layer.key_norm is None else layer.key_norm.numpy()
        self.before = (layer.input_norm.numpy(), eps, qkv.panels, qkv.scales, qkv.bias, query_norm, key_norm)
        self.after = (
            out.panels,
            out.scales,
            layer.mlp_norm.numpy(),
            eps,
            gate_up.panels,
            gate_up.scales,
            down.panels,
            down.scales,
        )


def _int8(linear: object) -> Int8Linear:
    assert isinstance(linear, Int8Linear)
    return linear
