"""Embeddings: texts or token ids in, one vector each out, batched with everybody else's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batching.batcher import Batcher
from batching.job import Caller, Job
from batching.worker import Worker
from handlers.devices import is_out_of_memory, release_memory
from handlers.embeddings.openai_tokens import OpenAITokens
from handlers.embeddings.types import EmbeddingRequest, Embeddings
from handlers.errors import InvalidRequest
from handlers.rerank.cosine import CosineTexts, relevance
from handlers.rerank.texts import DOCUMENTS_PER_TURN
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from handlers.embeddings.engine import Embedder, EmbeddingModel, Vector

TokenIds = Sequence[int]

_INPUTS_PER_TURN = 64
_MAX_CHARACTERS_PER_TOKEN = 128

_LANGCHAIN = "With LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False."


class SentenceEncoderHandler:
    """A sentence encoder. reranks: it also answers rerank requests, by the cosine of the vectors."""

    _batcher: Batcher[TokenIds, "Vector"]
    _loaded: "EmbeddingModel"
    _openai_tokens: OpenAITokens
    _cosine_texts: CosineTexts

    def __init__(self, spec: ModelSpec, open_source: Callable[[str], Path], *, reranks: bool = False) -> None:
        self.spec = spec
        self._reranks = reranks
        self._open_source = open_source
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id} texts")
        self._facts: Mapping[str, Any] = {}
        self._prompt_tokens = 0

    async def load(self) -> None:
        embedder = await self._worker.run(self._load)
        self._batcher = Batcher(
            self.spec.id,
            embedder.embed,
            self.spec.limits,
            worker=self._worker,
            is_out_of_memory=is_out_of_memory,
            release_memory=release_memory,
        )

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        also = {"capabilities": ["embeddings", "rerank"], "scoring": "cosine"} if self._reranks else {}
        facts = {"max_model_len": self.spec.max_model_len, **self._facts}
        return {"capabilities": ["embeddings"], **also, **facts}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), prompt_tokens=self._prompt_tokens)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """Each input is a job of its own, so a long list is split into batches and shares them with other requests.

        Raises InvalidRequest naming the input at fault, QueueFull when not all of them may wait.
        """
        self._refuse_other_dimensions(request.dimensions)
        with self._batcher.place(caller, len(request.inputs)):
            token_ids = await self._token_ids(request)
        jobs: list[Job[TokenIds, Vector]] = [Job(ids, caller, cost=len(ids)) for ids in token_ids]
        vectors = await self._batcher.submit_all(jobs)
        tokens = sum(map(len, token_ids))
        self._prompt_tokens += tokens
        return Embeddings(np.stack(vectors), tokens)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Relevance:
        """As RerankHandler.rerank: the query and each document are a job each."""
        with self._batcher.place(caller, 1 + len(request.documents)):
            token_ids = [await self._preparation.run(self._cosine_texts.query, request)]
            for start in range(0, len(request.documents), DOCUMENTS_PER_TURN):
                token_ids += await self._preparation.run(self._cosine_texts.documents, request, start)
        jobs: list[Job[TokenIds, Vector]] = [Job(ids, caller, cost=len(ids)) for ids in token_ids]
        query, *documents = await self._batcher.submit_all(jobs)
        return relevance(query, documents, sum(map(len, token_ids)))

    def _refuse_other_dimensions(self, dimensions: int | None) -> None:
        if dimensions not in (None, self._loaded.dimensions):
            raise InvalidRequest(
                f"`{self.spec.id}` was not trained for shortened vectors: leave `dimensions` out, or ask for its "
                f"{self._loaded.dimensions}.",
                "dimensions",
                "invalid_value",
            )

    async def _token_ids(self, request: EmbeddingRequest) -> list[TokenIds]:
        """A few inputs at a time, so that a long list does not keep everybody else's waiting."""
        token_ids: list[TokenIds] = []
        for start in range(0, len(request.inputs), _INPUTS_PER_TURN):
            token_ids += await self._preparation.run(self._tokenize, request, start)
        return token_ids

    def _tokenize(self, request: EmbeddingRequest, start: int) -> list[TokenIds]:
        """Token ids of the inputs from `start` on, special tokens included."""
        texts: dict[int, str] = {}
        token_ids: dict[int, TokenIds] = {}
        for index, item in enumerate(request.inputs[start : start + _INPUTS_PER_TURN], start):
            self._refuse_endless(index, item)
            if isinstance(item, str):
                texts[index] = item
            elif request.openai_ids:
                texts[index] = self._openai_text(index, item)
            else:
                token_ids[index] = self._with_special_tokens(index, item)
        token_ids |= self._tokenize_texts(texts)
        for index, ids in token_ids.items():
            if len(ids) > self._loaded.max_model_len:
                raise self._overlong(index, f"{len(ids)} tokens")
        return [token_ids[index] for index in sorted(token_ids)]

    def _tokenize_texts(self, texts: Mapping[int, str]) -> dict[int, TokenIds]:
        encodings = self._loaded.tokenizer.encode_batch_fast(list(texts.values()))
        return {index: encoding.ids for index, encoding in zip(texts, encodings, strict=True)}

    def _refuse_endless(self, index: int, item: str | TokenIds) -> None:
        # Far longer than any text of so many tokens; a tokenizer takes seconds for a few megabytes.
        if len(item) > self._loaded.max_model_len * _MAX_CHARACTERS_PER_TOKEN:
            raise self._overlong(index, f"{len(item)} {'characters' if isinstance(item, str) else 'tokens'}")

    def _overlong(self, index: int, length: str) -> InvalidRequest:
        return InvalidRequest(
            f"Input {index} is {length} long, and `{self.spec.id}` takes at most {self._loaded.max_model_len} tokens. "
            "Split it into shorter texts.",
            f"input[{index}]",
            "context_length_exceeded",
        )

    def _openai_text(self, index: int, ids: TokenIds) -> str:
        if self.spec.openai_tokens is None:
            raise InvalidRequest(
                f"Token ids of OpenAI's tokenizer cannot be read here. Send text, or token ids of `{self.spec.id}` "
                f"under that name. {_LANGCHAIN}",
                f"input[{index}]",
                "invalid_value",
            )
        try:
            text = self._openai_tokens.decode(ids)
        except KeyError as unknown:
            raise InvalidRequest(
                f"Input {index} has a token id that OpenAI's tokenizer does not know ({unknown}). Send text, or token "
                f"ids of the model's own tokenizer under its own name, `{self.spec.id}`.",
                f"input[{index}]",
                "invalid_value",
            ) from None
        self._refuse_endless(index, text)
        return text

    def _with_special_tokens(self, index: int, ids: TokenIds) -> TokenIds:
        """Token arrays are ids of the model's own tokenizer, without its special tokens, which are added here."""
        vocabulary = self._loaded.tokenizer.get_vocab_size()
        if any(not 0 <= id < vocabulary for id in ids):
            raise InvalidRequest(
                f"Input {index} has token ids that `{self.spec.id}` does not know (its vocabulary ends at "
                f"{vocabulary - 1}). Ids of another tokenizer mean other words here: send text instead. {_LANGCHAIN}",
                f"input[{index}]",
                "invalid_value",
            )
        return [*self._prefix, *ids, *self._suffix]

    def _load(self) -> "Embedder":
        from handlers.embeddings.engine import Embedder, load
        from handlers.pretrained import placement

        self._loaded = load(self.spec, self._open_source(self.spec.source))
        self._facts = {
            "max_model_len": self._loaded.max_model_len,
            "dimensions": self._loaded.dimensions,
            **placement(self._loaded.encoder),
        }
        self._prefix, self._suffix = _special_tokens(self._loaded.tokenizer)
        self._cosine_texts = CosineTexts(
            self.spec.id, self._loaded.tokenizer, self._prefix, self._suffix, self._loaded.max_model_len
        )
        embedder = Embedder(self._loaded)
        if self.spec.openai_tokens is not None:
            self._openai_tokens = OpenAITokens(self._open_source(self.spec.openai_tokens))
        embedder.embed(self._tokenize(EmbeddingRequest(["Hello", "Hello, world"]), 0))
        return embedder


def _special_tokens(tokenizer: "Tokenizer") -> tuple[TokenIds, TokenIds]:
    """What the tokenizer puts before and after a text, found by tokenizing one with and without."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    start = next(i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
