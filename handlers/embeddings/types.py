"""What an embedding request is, apart from any wire format."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """inputs: texts or lists of token ids; one vector comes back for each, in order.

    openai_ids: token ids are of OpenAI's tokenizer, not of the model's own.
    """

    inputs: Sequence[str | Sequence[int]]
    dimensions: int | None = None
    openai_ids: bool = False


@dataclass(frozen=True, slots=True)
class Embeddings:
    """vectors: float32, [inputs, dimensions]. tokens: real tokens of all inputs, special tokens included."""

    vectors: NDArray[np.float32]
    tokens: int
