"""Reranking with an embeddings model: the nearer a document's vector is to the query's, the more relevant it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.rerank.texts import Texts, TokenIds, refuse_instruction
from handlers.rerank.types import Relevance, RerankRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class CosineTexts:
    """Tokenizes queries and documents alike, each for itself. Called in a worker thread."""

    def __init__(
        self, name: str, tokenizer: "Tokenizer", opening: TokenIds, closing: TokenIds, max_model_len: int
    ) -> None:
        """opening, closing: the special tokens around every text."""
        self._name = name
        self._texts = Texts(name, tokenizer)
        self._opening, self._closing = opening, closing
        self._room = max_model_len - len(opening) - len(closing)

    def query(self, request: RerankRequest) -> TokenIds:
        """Raises InvalidRequest for one that is too long, or comes with an instruction."""
        refuse_instruction(self._name, request)
        return self._whole(self._texts.query(request.query, self._room))

    def documents(self, request: RerankRequest, start: int) -> list[TokenIds]:
        """Of one turn. Raises InvalidRequest naming a document that is too long."""
        return [self._whole(ids) for ids in self._texts.documents(request, start, self._room)]

    def _whole(self, ids: TokenIds) -> TokenIds:
        return [*self._opening, *ids, *self._closing]


def relevance(query: NDArray[np.float32], documents: Sequence[NDArray[np.float32]], tokens: int) -> Relevance:
    """raw: the cosines; scores: (1 + cosine) / 2. query: [dimensions]; documents: as many vectors of that length."""
    vectors, of = np.stack(documents).astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(of)
    cosines = np.clip(vectors @ of / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    return Relevance(cosines, (1 + cosines) / 2, tokens)
