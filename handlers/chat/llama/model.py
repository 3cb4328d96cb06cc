"""The forward pass over a packed batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from handlers.chat.kv_cache import KVShape
from handlers.chat.llama.compiled import CompiledForward
from handlers.chat.llama.config import AnyLinear, Layer, LlamaConfig
from handlers.chat.packed import PackedBatch, attend
from handlers.linear import ALL_ROWS, Int8Linear, Linear

ReadTensor = Callable[[str], torch.Tensor]


class LlamaModel:
    """See handlers.chat.packed.PackedModel."""

    def __init__(
        self,
        config: LlamaConfig,
        read: ReadTensor,
        dtype: torch.dtype,
        device: torch.device,
        *,
        int8_rows: int = 0,
    ) -> None:
        """read: a tensor of the checkpoint by its name.

        int8_rows: up to so many rows a step use int8 weights. All is float32 then, except for the weights of more rows.
        """
        self.config = config
        self.device = device
        self.dtype = torch.float32 if int8_rows else dtype
        self.vocab_size = config.vocab_size
        self.kv_shape = KVShape(config.layers, config.key_heads, config.head_dim, self.dtype, device)
        self.int8_rows = int8_rows
        self._many_dtype = dtype
        self._layers = [Layer(**self._parts(read, f"model.layers.{i}.")) for i in range(config.layers)]
        self._norm = read("model.norm.weight").to(device, dtype)
        embeddings = read("model.embed_tokens.weight").to(device, self.dtype)
        self._head = self._linear(embeddings if config.tied else read("lm_head.weight"), few=True)
        self._embed = _lookup(embeddings, self._head if config.tied else None)
        self.parameters = _parameters(config)
        self._inverse_frequencies = _inverse_frequencies(config.head_dim, config.rope_theta, device)
        self._compiled: CompiledForward | None = None
        if isinstance(self._head, Int8Linear):
            self._compiled = CompiledForward(config, self._layers, self._norm, self._head)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of the wanted tokens: [wanted, vocab_size]."""
        hidden = self._embed(batch.token_ids)
        cos, sin = self._rotation(batch.positions)
        if self._compiled is not None and len(hidden) <= self.int8_rows:
            return self._compiled(batch, hidden, cos, sin)
        for i, layer in enumerate(self._layers):
            hidden = hidden + self._attention(i, layer, batch, self._normed(hidden, layer.input_norm), cos, sin)
            hidden = hidden + self._mlp(layer, self._normed(hidden, layer.mlp_norm))
        return self._head(self._normed(hidden[batch.logits_at], self._norm))

    def _parts(self, read: ReadTensor, prefix: str) -> dict[str, Any]:
        def linear(*names: str) -> AnyLinear:
            weight = torch.cat([read(f"{prefix}{name}.weight") for name in names])
            return self._linear(weight, _optional(read, [f"{prefix}{name}.bias" for name in names]))

        def norm(name: str) -> torch.Tensor:
            return read(f"{prefix}{name}.weight").to(self.device, self.dtype)

        has_qk_norm = self.config.has_qk_norm
        return {
            "input_norm": norm("input_layernorm"),
            "qkv": linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "query_norm": norm("self_attn.q_norm") if has_qk_norm else None,
            "key_norm": norm("self_attn.k_norm") if has_qk_norm else None,
            "out": linear("self_attn.o_proj"),
            "mlp_norm": norm("post_attention_layernorm"),
            "gate_up": linear("mlp.gate_proj", "mlp.up_proj"),
            "down": linear("mlp.down_proj"),
        }

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, few: bool = False) -> AnyLinear:
        """few: seldom more than a row of each request is multiplied with it."""
        weight = weight.to(self.device, self.dtype)
        bias = None if bias is None else bias.to(self.device, self.dtype)
        if not self.int8_rows:
            return Linear(weight, bias)
        many = None if few or self.int8_rows == ALL_ROWS else self._many_dtype
        return Int8Linear(weight, bias, few_rows=self.int8_rows, many=many)

    def _attention(
        self,
        index: int,
        layer: Layer,
        batch: PackedBatch,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        config = self.config
        mixed = layer.qkv(hidden).view(len(hidden), -1, config.head_dim)
        rotated, value = mixed[:, : config.heads + config.key_heads], mixed[:, config.heads + config.key_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = rotated[:, : config.heads], rotated[:, config.heads :]
            rotated = torch.cat([self._normed(query, layer.query_norm), self._normed(key, layer.key_norm)], dim=1)
        rotated = _rotate(rotated, cos, sin)
        query, key = rotated[:, : config.heads], rotated[:, config.heads :]
        out = attend(batch, index, query, key, value, config.head_dim**-0.5, window=config.window)
        return layer.out(out.reshape(len(hidden), -1))

    def _mlp(self, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up))

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.config.eps)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, [tokens, 1, head_dim] each (Su et al., RoFormer, 2021)."""
        angles = positions[:, None].float() * self._inverse_frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _parameters(config: LlamaConfig) -> int:
    attention = config.hidden_size * config.head_dim * 2 * (config.heads + config.key_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.layers * layer + config.hidden_size * config.vocab_size


def _lookup(table: torch.Tensor, tied: AnyLinear | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Embeddings of token ids, from the output layer if it holds them anyway."""
    return tied.rows if isinstance(tied, Int8Linear) else table.__getitem__


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """states: [tokens, heads, head_dim]."""
    first, second = states.chunk(2, dim=-1)
    return torch.addcmul(states * cos, torch.cat([-second, first], dim=-1), sin)


def _inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return torch.tensor(1.0, device=device) / (theta**exponents)


def _optional(read: ReadTensor, names: list[str]) -> torch.Tensor | None:
    try:
        return torch.cat([read(name) for name in names])
    except KeyError:
        return None
