"""From logits to tokens, each row by its own parameters."""

from collections.abc import Sequence

import torch

from handlers.chat.types import Sampling

_MASK = (1 << 63) - 1
_GREEDY_BELOW = 1e-5
"""Dividing logits by less than this overflows; the result would be greedy anyway."""

_SMALLEST = 1e-9


def sample(logits: torch.Tensor, rows: Sequence[Sampling], positions: Sequence[int]) -> list[int | None]:
    """One token a row; None where the row's logits are not numbers.

    logits: [rows, vocabulary], any float type. positions: how many tokens the row has generated before this one.
    A seeded row draws from (seed, position) alone, so its answer depends neither on its neighbours nor on having been
    preempted and resumed.
    """
    logits = logits.float()
    tokens: list[int | None] = list(logits.argmax(dim=-1).tolist())
    # The largest is NaN if any is, infinite if any overflowed; minus infinity elsewhere is a masked token.
    for i, healthy in enumerate(logits.amax(dim=-1).isfinite().tolist()):
        if not healthy:
            tokens[i] = None
        elif rows[i].temperature >= _GREEDY_BELOW:
            tokens[i] = _draw(logits[i], rows[i], positions[i])
    return tokens


def _draw(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    generator = torch.Generator(device=logits.device)
    generator.manual_seed(_mix(sampling.seed or 0, position))
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most likely tokens whose sum reaches `top_p` (Holtzman et al., 2019)."""
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= max(top_p, _SMALLEST)  # the likeliest always stays
    return probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))


def _mix(seed: int, position: int) -> int:
    """splitmix64's finaliser (Steele et al., 2014): neighbouring seeds and positions give unrelated streams."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & _MASK
