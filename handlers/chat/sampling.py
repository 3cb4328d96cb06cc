"""From logits to tokens, each row by its own parameters."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from batching.errors import EngineFailed
from handlers.chat.constraints import Constraint, ConstraintError
from handlers.chat.types import Sampling

_MASK = (1 << 63) - 1
_GREEDY_BELOW = 1e-5
"""Dividing logits by less than this overflows; the result would be greedy anyway."""

_SMALLEST = 1e-9
_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, its log-probability in the model's own distribution, and the likeliest as (token, logprob).

    logprob and top are there only if the request asked for them.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class History:
    """What one answer's next token depends on besides the logits. eos: the tokens that end it."""

    sampling: Sampling
    prompt_ids: Sequence[int]
    eos: frozenset[int]
    constraint: Constraint | None = None
    generated: list[int] = field(default_factory=list)
    _counts: Counter[int] = field(default_factory=Counter)

    def add(self, token: int) -> None:
        """Raises what the constraint raises for a token outside its grammar."""
        self.generated.append(token)
        self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)

    @property
    def is_complete(self) -> bool:
        """Whether the grammar, if there is one, has come to its only end."""
        return self.constraint is not None and self.constraint.complete

    @property
    def counts(self) -> Mapping[int, int]:
        """How often each token was generated."""
        return self._counts

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits are changed at all."""
        sampling = self.sampling
        penalised = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1
        return bool(penalised or sampling.logit_bias or self.constraint is not None or self._is_too_early)

    @property
    def _is_too_early(self) -> bool:
        return len(self.generated) < self.sampling.min_tokens

    @property
    def forbidden(self) -> Iterable[int]:
        """Tokens that may not come now. A grammar decides for itself when it may end."""
        if self._is_too_early and self.constraint is None:
            yield from self.eos
            yield from self.sampling.stop_token_ids


def sample(logits: torch.Tensor, rows: Sequence[History]) -> list[Choice | Exception]:
    """One choice a row; an exception where the row's logits are not numbers or its grammar cannot go on.

    logits: [rows, vocabulary], any float type. A seeded row draws from (seed, position) alone, so its answer depends
    neither on its neighbours nor on having been preempted and resumed.
    """
    logits = logits.float()
    # The largest is NaN if any is, infinite if any overflowed; minus infinity elsewhere is a masked token.
    healthy = logits.amax(dim=-1).isfinite().tolist()
    failed: dict[int, Exception] = {
        i: EngineFailed("the model's output was not a number") for i, good in enumerate(healthy) if not good
    }
    adjusted = _adjusted(logits, rows, failed)
    best, likeliest = (values.tolist() for values in adjusted.max(dim=-1))
    for i in range(len(rows)):
        if i not in failed and best[i] == float("-inf"):
            failed[i] = ConstraintError("no token is left that may come next")
    drawing = [i for i, row in enumerate(rows) if i not in failed and row.sampling.temperature >= _GREEDY_BELOW]
    drawn = dict(zip(drawing, _draw_all(adjusted, rows, drawing), strict=True))
    return [
        failed[i] if i in failed else choice(logits[i], drawn.get(i, likeliest[i]), row.sampling.top_logprobs)
        for i, row in enumerate(rows)
    ]


def _draw_all(adjusted: torch.Tensor, rows: Sequence[History], drawing: Sequence[int]) -> list[int]:
    """Read from the device in one go: reading each waits for it."""
    if not drawing:
        return []
    tokens = [_draw(adjusted[i], rows[i].sampling, len(rows[i].generated)) for i in drawing]
    return [int(token) for token in torch.cat(tokens).tolist()]


def choice(logits: torch.Tensor, token: int, top_logprobs: int | None) -> Choice:
    """`token` with what was asked for about it. logits: [vocabulary], as the model gave them."""
    if top_logprobs is None:
        return Choice(token)
    total = torch.logsumexp(logits, dim=-1)
    logprob = float(logits[token] - total)
    if not top_logprobs:
        return Choice(token, logprob)
    values, ids = logits.topk(min(top_logprobs, len(logits)))
    return Choice(token, logprob, tuple(zip(ids.tolist(), (values - total).tolist(), strict=True)))


def _adjusted(logits: torch.Tensor, rows: Sequence[History], failed: dict[int, Exception]) -> torch.Tensor:
    """The logits after penalties, biases and masks; a copy if any row has such. Adds to `failed` who cannot go on."""
    changing = [i for i, row in enumerate(rows) if i not in failed and row.adjusts]
    if not changing:
        return logits
    logits = logits.clone()
    for i in changing:
        try:
            _adjust(logits[i], rows[i])
        except ConstraintError as error:
            failed[i] = error
    return logits


def _adjust(logits: torch.Tensor, row: History) -> None:
    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        seen = _indices({*row.prompt_ids, *row.counts}, logits)
        scores = logits[seen]
        penalty = sampling.repetition_penalty  # Keskar et al., CTRL, 2019
        logits[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if row.counts and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = torch.tensor(list(row.counts.values()), dtype=logits.dtype, device=logits.device)
        penalties = counts * sampling.frequency_penalty + sampling.presence_penalty
        logits[_indices(row.counts, logits)] -= penalties
    if sampling.logit_bias:
        biases = torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        logits[_indices(sampling.logit_bias, logits)] += biases
    if forbidden := list(row.forbidden):
        logits[_indices(forbidden, logits)] = float("-inf")
    if row.constraint is not None:
        row.constraint.mask_logits(logits)


def _indices(tokens: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)


def _draw(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """One token, [1]."""
    scaled = logits / sampling.temperature
    generator = torch.Generator(device=logits.device)
    generator.manual_seed(_mix(sampling.seed or 0, position))
    if sampling.top_k == 0 and sampling.top_p >= 1 and sampling.min_p == 0:
        return torch.multinomial(torch.softmax(scaled, dim=-1), 1, generator=generator)
    probabilities, tokens = _candidates(scaled, sampling)
    return tokens[torch.multinomial(probabilities, 1, generator=generator)]


def _candidates(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn, likeliest first, and their probabilities, which need not sum to one.

    Sorting a whole vocabulary takes milliseconds, so the nucleus is first looked for among the likeliest.
    """
    values, tokens = scaled.topk(min(sampling.top_k or _CANDIDATES, len(scaled)))
    total = torch.logsumexp(values if sampling.top_k else scaled, dim=-1)
    probabilities = torch.exp(values - total)
    if not sampling.top_k and not _holds_nucleus(probabilities, sampling):
        values, tokens = scaled.sort(descending=True)
        probabilities = torch.exp(values - total)
    outside = probabilities.cumsum(dim=-1) - probabilities >= max(sampling.top_p, _SMALLEST)  # the likeliest stays
    outside |= probabilities < sampling.min_p * probabilities[0]
    return probabilities.masked_fill(outside, 0.0), tokens


def _holds_nucleus(probabilities: torch.Tensor, sampling: Sampling) -> bool:
    """Whether everything after the candidates is left out anyway, by top_p or by min_p."""
    by_top_p = sampling.top_p < 1 and float(probabilities.sum()) >= sampling.top_p
    return by_top_p or float(probabilities[-1]) < sampling.min_p * float(probabilities[0])


def _mix(seed: int, position: int) -> int:
    """splitmix64's finaliser (Steele et al., 2014): neighbouring seeds and positions give unrelated streams."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & _MASK
