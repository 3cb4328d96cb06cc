"""One step of generation with transformers: any causal language model that has a standard cache."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from batching.errors import EngineFailed
from batching.generation import Joining, StepOutput
from handlers.chat.kv_cache import BatchCache
from handlers.chat.sampling import sample
from handlers.chat.types import Sampling

logger = logging.getLogger(__name__)

_TRIM_SHARE = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: the rendered conversation. max_tokens: how many may be generated at most."""

    token_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling


@dataclass(slots=True)
class _Row:
    """A running request. length: tokens in the cache; generated: tokens given out; last: the one not in the cache."""

    id: int
    prompt: Prompt
    length: int
    generated: int
    last: int


class TransformersEngine:
    """Keeps the running rows and their cache; lives in the worker thread."""

    def __init__(self, model: PreTrainedModel, eos_token_ids: Sequence[int]) -> None:
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.reset()

    @property
    def columns(self) -> int:
        """Tokens of the longest row, as the cache is laid out."""
        return self._cache.get_seq_length()

    def reset(self) -> None:
        """Drop every row and its cache."""
        self._rows: list[_Row] = []
        self._cache = BatchCache(self._layers)

    @torch.inference_mode()
    def step(self, joining: Sequence[Joining[Prompt, int]], leaving: Sequence[int]) -> Sequence[StepOutput[int]]:
        """One more token for every row; the joining ones get their first from the prefill."""
        self._drop(set(leaving))
        outputs = self._decode() if self._rows else []
        for entry in joining:
            outputs.append(self._prefill(entry))
        self._drop({output.id for output in outputs if output.finish_reason or output.error})
        return outputs

    def _decode(self) -> list[StepOutput[int]]:
        device = self._model.device
        length = self.columns
        lengths = torch.tensor([row.length for row in self._rows], device=device)
        logits = self._model(
            input_ids=torch.tensor([[row.last] for row in self._rows], device=device),
            position_ids=lengths[:, None],
            attention_mask=_padding_mask(length, lengths),
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        for row in self._rows:
            row.length += 1
        return self._sample(self._rows, logits)

    def _prefill(self, entry: Joining[Prompt, int]) -> StepOutput[int]:
        tokens = [*entry.prompt.token_ids, *entry.generated]
        cache = BatchCache(self._layers)
        logits = self._model(
            input_ids=torch.tensor([tokens], device=self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        row = _Row(entry.id, entry.prompt, len(tokens), len(entry.generated), last=-1)
        self._cache.insert(cache)
        self._rows.append(row)
        return self._sample([row], logits)[0]

    def _sample(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[StepOutput[int]]:
        tokens = sample(logits, [row.prompt.sampling for row in rows], [row.generated for row in rows])
        return [self._take(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _take(self, row: _Row, token: int | None) -> StepOutput[int]:
        if token is None:
            return StepOutput(row.id, error=EngineFailed("the model's output was not a number"))
        row.last = token
        row.generated += 1
        if token in self._eos:
            return StepOutput(row.id, token, "stop")
        return StepOutput(row.id, token, "length" if row.generated >= row.prompt.max_tokens else None)

    def _drop(self, ids: set[int]) -> None:
        kept = [i for i, row in enumerate(self._rows) if row.id not in ids]
        if len(kept) == len(self._rows):
            return
        if not kept:
            self.reset()
            return
        self._rows = [self._rows[i] for i in kept]
        self._cache.keep(kept)
        self._trim()

    def _trim(self) -> None:
        """Cut padding that every row has, once it is worth the copy."""
        padding = self.columns - max(row.length for row in self._rows)
        if padding * _TRIM_SHARE > self.columns:
            self._cache.trim(padding)


def _padding_mask(length: int, lengths: torch.Tensor) -> torch.Tensor | None:
    """[rows, length + 1], 1 where a row has a token. None when no row is padded: attention is cheaper without."""
    if int(lengths.min()) == length:
        return None
    columns = torch.arange(length + 1, device=lengths.device)
    return (columns >= length - lengths[:, None]).long()
