"""What a rerank request is, apart from any wire format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a gateway that only relays never needs it
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """max_tokens_per_doc: longer documents are cut to so many tokens. instruction: what relevance means here.
    cache_salt: cached vectors, where relevance is made of them, are shared only under the same."""

    query: str
    documents: Sequence[str]
    max_tokens_per_doc: int | None = None
    instruction: str | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Relevance:
    """One number a document, in the documents' order, float64.

    raw: what the model says, a logit or a cosine. scores: the same between 0 and 1. tokens: all that were read, special
    ones included.
    """

    raw: "NDArray[np.float64]"
    scores: "NDArray[np.float64]"
    tokens: int

    def ranking(self) -> list[int]:
        """Documents by relevance, the best first, equal ones in their order."""
        return [int(index) for index in (-self.raw).argsort(kind="stable")]
