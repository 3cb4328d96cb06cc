"""A step's tokens in one row without padding, and attention over them.

Tokens of all requests lie one after the other, so that every linear layer is one multiplication over exactly the tokens
there are (Yu et al., Orca, OSDI 2022: selective batching). Only attention tells the requests apart.

    tokens   [ a | b | c | ----- chunk of d's prompt ----- | -- chunk of e's -- ]
               decode: one token a row, bucket by bucket      prefill: one run a row
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional as F

from handlers.chat.kv_cache import Bucket, KVShape


@dataclass(slots=True)
class DecodeGroup:
    """The rows of one bucket, each with one new token. lengths: tokens that each has before it."""

    bucket: Bucket
    start: int
    lengths: torch.Tensor
    columns: int
    slots: torch.Tensor
    mask: torch.Tensor | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.bucket)


@dataclass(slots=True)
class Chunk:
    """A run of one prompt. states: that row's memory, [2, layers, heads, tokens, head_dim]; before: tokens done."""

    states: torch.Tensor
    start: int
    stop: int
    before: int


@dataclass(slots=True)
class Overlay:
    """What takes the place of tokens' embeddings. at: [places] among the step's tokens; vectors: [places, hidden]."""

    at: torch.Tensor
    vectors: torch.Tensor


@dataclass(slots=True)
class PackedBatch:
    """token_ids, positions: [tokens]. logits_at: [wanted], the tokens whose logits are needed.

    Only prompts with images have an overlay, or positions of [axes, tokens].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logits_at: torch.Tensor
    decodes: Sequence[DecodeGroup]
    chunks: Sequence[Chunk]
    overlay: Overlay | None = None
    _masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    def causal_mask(self, chunk: Chunk, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """[new tokens, all tokens], to be added to the scores; shared by all layers."""
        key = (chunk.stop - chunk.start, chunk.before, window)
        if key not in self._masks:
            self._masks[key] = _causal_mask(*key, like)
        return self._masks[key]

    @property
    def windows(self) -> frozenset[int]:
        """Those that some layer's chunks were computed with."""
        return frozenset(window for _, _, window in self._masks if window is not None)


class PackedModel(Protocol):
    """A causal language model that computes a packed batch.

    parameters: how many weights each token meets. int8_rows: up to how many rows they are read as 8 bits each.
    """

    kv_shape: KVShape
    vocab_size: int
    parameters: int
    int8_rows: int
    device: torch.device

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits of `batch.logits_at`: [wanted, vocab_size]. Keys and values go to where the batch says."""


def attend(
    batch: PackedBatch,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of every token to its own request's tokens; `key` and `value` are stored on the way.

    query: [tokens, heads, head_dim]; key, value: [tokens, key heads, head_dim]. Returns [tokens, heads, head_dim].
    scale: of the scores. window: tokens that a token sees at most, itself included. softcap: bound of the scores.
    """
    out = torch.empty_like(query)
    for group in batch.decodes:
        part = slice(group.start, group.stop)
        out[part] = _decode(group, layer, query[part], key[part], value[part], scale, window, softcap)
    attend_chunks(batch, layer, query, key, value, scale, window=window, softcap=softcap, out=out)
    return out


def attend_chunks(
    batch: PackedBatch,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor,
) -> None:
    """`attend` for the prompts alone; theirs of the rows of `out` are set."""
    for chunk in batch.chunks:
        part = slice(chunk.start, chunk.stop)
        states = chunk.states[:, layer]
        new = slice(chunk.before, chunk.before + chunk.stop - chunk.start)
        states[0, :, new] = key[part].transpose(0, 1)
        states[1, :, new] = value[part].transpose(0, 1)
        out[part] = _prefill(batch, chunk, states[:, :, : new.stop], query[part], scale, window, softcap)


def _decode(
    group: DecodeGroup,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    keys, values = group.bucket.slab[0, layer], group.bucket.slab[1, layer]
    keys[group.slots, :, group.lengths] = key
    values[group.slots, :, group.lengths] = value
    rows, heads, size = query.shape
    keys, values = keys[:rows, :, : group.columns], values[:rows, :, : group.columns]
    # The query heads that share a key head are its queries, so keys are read once and never repeated.
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], size)
    mask = group.mask if window is None else _window_mask(group, window)
    return _scores(grouped, keys, values, mask, scale, softcap).reshape(rows, heads, size)


def _prefill(
    batch: PackedBatch,
    chunk: Chunk,
    states: torch.Tensor,
    query: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    new, heads, size = query.shape
    key_heads = states.shape[1]
    keys, values = states[0][None], states[1][None]
    queries = query.transpose(0, 1)[None]
    if chunk.before == 0 and window is None and softcap is None:
        out = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=heads != key_heads
        )
        return out[0].transpose(0, 1)
    mask = batch.causal_mask(chunk, window, query)
    group = heads // key_heads
    grouped = queries.reshape(1, key_heads, group * new, size)
    out = _scores(grouped, keys, values, mask.repeat(group, 1), scale, softcap)
    return out.view(heads, new, size).transpose(0, 1)


def _scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value


def padding_mask(lengths: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 1, 1, columns], to be added to the scores of rows of `lengths` + 1 tokens."""
    outside = torch.arange(columns, device=lengths.device) > lengths[:, None]
    return _as_bias(outside, dtype)[:, None, None]


def _window_mask(group: DecodeGroup, window: int) -> torch.Tensor | None:
    if group.columns <= window:
        return group.mask
    columns = torch.arange(group.columns, device=group.lengths.device)
    outside = (columns > group.lengths[:, None]) | (columns <= group.lengths[:, None] - window)
    return _as_bias(outside, group.bucket.slab.dtype)[:, None, None]


def _causal_mask(new: int, before: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(before, before + new, device=like.device)[:, None]
    columns = torch.arange(before + new, device=like.device)
    outside = columns > rows
    if window is not None:
        outside |= columns <= rows - window
    return _as_bias(outside, like.dtype)


def _as_bias(outside: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(outside.shape, dtype=dtype, device=outside.device).masked_fill_(outside, float("-inf"))
