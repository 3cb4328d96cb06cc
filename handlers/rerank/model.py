"""What runs a reranker: pairs in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tokenizers import Tokenizer

from handlers.rerank.pairs import Layout, Pair


class Scorer(Protocol):
    """A model up to one number a pair."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Of pairs sorted by length, longest first: float32 [pairs], whose sigmoid is the relevance."""


@dataclass(frozen=True, slots=True)
class RerankModel:
    """scoring: how the number comes about, for people to read.

    max_model_len: tokens of a pair, special ones included.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    layout: Layout
    max_model_len: int
    scoring: str
