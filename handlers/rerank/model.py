"""What runs a reranker: pairs in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer

from handlers.pretrained import max_model_len
from handlers.rerank.pairs import Layout, Pair
from handlers.spec import ModelSpec
from handlers.tokenization import read_tokenizer_config

# transformers writes 10 ** 30 where nobody knows.
_UNKNOWN = 10**9


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


def pair_length(spec: ModelSpec, folder: Path, positions: int | None) -> int:
    """Tokens of a pair: no more than the tokenizer says the model was trained for, where it says so.

    positions: the most it has room for. Raises ModelLoadError, as max_model_len does.
    """
    trained = read_tokenizer_config(folder).get("model_max_length") or _UNKNOWN
    trained = min(trained, positions or trained)
    return max_model_len(spec, None if trained >= _UNKNOWN else int(trained), positions)
