"""Reranking with an embeddings model: the nearer a document's vector is to the query's, the more relevant it is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.embeddings.cache import cache_key, salted
from handlers.embeddings.prompts import Prompts
from handlers.embeddings.vectors import Input
from handlers.rerank.texts import Texts, TokenIds, refuse_instruction
from handlers.rerank.types import Relevance, RerankRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class CosineTexts:
    """Tokenizes queries and documents, each for itself and with its prompt. Called in a worker thread."""

    def __init__(
        self,
        name: str,
        tokenizer: "Tokenizer",
        prompts: Prompts,
        *,
        opening: TokenIds,
        closing: TokenIds,
        max_model_len: int,
    ) -> None:
        """opening, closing: the special tokens around every text."""
        self._name = name
        self._before_query, self._before_document = prompts.of_search("query"), prompts.of_search("document")
        self._prompt_tokens = len(tokenizer.encode(self._before_document, add_special_tokens=False).ids)
        self._texts = Texts(name, tokenizer)
        self._opening, self._closing = opening, closing
        self._room = max_model_len - len(opening) - len(closing)

    def query(self, request: RerankRequest) -> Input:
        """Raises InvalidRequest for one that is too long, or comes with an instruction."""
        refuse_instruction(self._name, request)
        ids = self._texts.query(self._before_query + request.query, self._room)
        return self._whole(ids, salted(request.cache_salt))

    def documents(self, request: RerankRequest, start: int) -> list[Input]:
        """Of one turn. Raises InvalidRequest naming a document that is too long."""
        salt, most = salted(request.cache_salt), request.max_tokens_per_doc
        if most is not None:
            request = replace(request, max_tokens_per_doc=most + self._prompt_tokens)
        documents = self._texts.documents(request, start, self._room, self._before_document)
        return [self._whole(ids, salt) for ids in documents]

    def _whole(self, ids: TokenIds, salt: bytes) -> Input:
        whole = [*self._opening, *ids, *self._closing]
        return Input(whole, cache_key(whole, salt))


def relevance(query: NDArray[np.float32], documents: Sequence[NDArray[np.float32]], tokens: int) -> Relevance:
    """raw: the cosines; scores: (1 + cosine) / 2. query: [dimensions]; documents: as many vectors of that length."""
    vectors, of = np.stack(documents).astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(of)
    cosines = np.clip(vectors @ of / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    return Relevance(cosines, (1 + cosines) / 2, tokens)
