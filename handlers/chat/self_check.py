"""Whether a model computes a packed batch as it computes its requests alone.

What a packed batch cannot express (a state beside keys and values, a bias of positions, attention of another kind)
gives fluent but wrong text. It is found out when the model is loaded, on a few tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from handlers.chat.engine import PromptImages
from handlers.chat.kv_cache import KVCache
from handlers.chat.packed import Chunk, DecodeGroup, Overlay, PackedBatch, PackedModel
from handlers.errors import ModelLoadError

_TOLERANCE = 0.1
"""Of a token's logits, in the middle: rounding to bfloat16 makes hundredths, a wrong computation several tenths."""

_LONG, _SHORT = 12, 8


def check_packed(model: PackedModel, alone: Sequence[torch.Tensor]) -> frozenset[int]:
    """The sizes of the windows that some layers' attention asked for. Raises ModelLoadError.

    alone: logits of each of `probes`, as the model itself computes them.
    """
    long, short = (torch.tensor(probe, device=model.device) for probe in probes(model.vocab_size))
    expected_long, expected_short = alone
    half, quarter = _LONG // 2, _LONG // 4
    long_states = model.kv_shape.empty(1, _LONG)[:, :, 0]
    short_states = model.kv_shape.empty(1, _SHORT // 2)[:, :, 0]
    first = _pack([(long[:half], long_states, 0), (short[: _SHORT // 2], short_states, 0)])
    _compare(model.forward(first), torch.cat([expected_long[:half], expected_short[: _SHORT // 2]]))
    cache = KVCache(model.kv_shape)
    cache.add(0, short_states)
    decoded: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for at in range(_SHORT // 2, _SHORT):
        done = half + len(rest) * quarter
        chunks = [(long[done : done + quarter], long_states, done)] if done < _LONG else []
        logits = model.forward(_pack(chunks, short[at : at + 1], cache, at))
        decoded.append(logits[:1])
        rest += [logits[1:]] if chunks else []
    _compare(torch.cat(decoded), expected_short[_SHORT // 2 :])
    _compare(torch.cat(rest), expected_long[half:])
    return first.windows


def check_images(
    model: PackedModel, token_ids: Sequence[int], images: PromptImages, wanted: torch.Tensor, expected: torch.Tensor
) -> None:
    """The same for a prompt with an image, which is cut in two within the image. Raises ModelLoadError.

    wanted: places of the prompt, ascending, its last two among them. expected: their logits.
    """
    vectors = images.vectors()
    positions = torch.arange(len(token_ids)) if images.positions is None else images.positions
    states = model.kv_shape.empty(1, len(token_ids))[:, :, 0]
    end = len(token_ids) - 2
    logits = []
    for start, stop in pairwise((0, images.at[len(images.at) // 2], end)):
        inside = [(place, i) for i, place in enumerate(images.at) if start <= place < stop]
        overlay = Overlay(
            torch.tensor([place - start for place, _ in inside], device=model.device),
            vectors[[i for _, i in inside]],
        )
        asked = wanted[(wanted >= start) & (wanted < stop)] - start
        batch = PackedBatch(
            torch.tensor(token_ids[start:stop], device=model.device),
            positions[..., start:stop].to(model.device),
            asked.to(model.device),
            [],
            [Chunk(states, 0, stop - start, start)],
            overlay,
        )
        logits.append(model.forward(batch))
    cache = KVCache(model.kv_shape)
    cache.add(0, states[:, :, :, :end])
    for at in (end, end + 1):
        batch = _pack([], torch.tensor(token_ids[at : at + 1], device=model.device), cache, at)
        batch.positions = positions[..., at : at + 1].to(model.device)
        logits.append(model.forward(batch))
    # Apart, as each has a middle of its own: image tokens that see those after them differ most where they begin.
    begin, rest = images.at[: -(-len(images.at) // 4)], images.at[-(-len(images.at) // 4) :]
    others = [place for place in range(len(token_ids)) if place not in set(images.at)]
    for places in filter(None, (begin, rest, others)):
        of_these = torch.isin(wanted, torch.tensor(places))
        _compare(torch.cat(logits)[of_these], expected[of_these])


def probes(vocab_size: int) -> Iterator[list[int]]:
    """Two different runs of tokens, each to be computed alone."""
    for start, length in ((11, _LONG), (1_000_003, _SHORT)):
        yield [(start + i * 7919) % vocab_size for i in range(length)]


def _pack(
    chunks: Sequence[tuple[torch.Tensor, torch.Tensor, int]],
    token: torch.Tensor | None = None,
    cache: KVCache | None = None,
    length: int = 0,
) -> PackedBatch:
    """All logits are wanted. chunks: (tokens, states, before). token: what the row in the cache goes on with."""
    parts, positions, packed, groups = [], [], [], []
    start = 0
    if token is not None and cache is not None:
        lengths = torch.full_like(token, length)
        groups = [DecodeGroup(bucket, 0, lengths, length + 1, torch.zeros_like(token)) for bucket in cache]
        parts, positions, start = [token], [lengths], 1
    for tokens, states, before in chunks:
        parts.append(tokens)
        positions.append(torch.arange(before, before + len(tokens), device=tokens.device))
        packed.append(Chunk(states, start, start + len(tokens), before))
        start += len(tokens)
    token_ids = torch.cat(parts)
    everywhere = torch.arange(start, device=token_ids.device)
    return PackedBatch(token_ids, torch.cat(positions), everywhere, groups, packed)


def _compare(logits: torch.Tensor, expected: torch.Tensor) -> None:
    logits, expected = logits.float(), expected.float()
    scale = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    error = float(((logits - expected).norm(dim=-1) / scale).median())
    if not error < _TOLERANCE:
        raise ModelLoadError("their results in a batch are not those they have alone")
