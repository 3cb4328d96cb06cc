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
from handlers.spec import ModelSpec

if TYPE_CHECKING:
    from handlers.embeddings.engine import EmbeddingModel, TransformersEmbedder, Vector

TokenIds = Sequence[int]

_INPUTS_PER_TURN = 64
_MAX_CHARACTERS_PER_TOKEN = 128

_LANGCHAIN = "With LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False."


class TransformersEmbeddingsHandler:
    """A sentence encoder run by transformers."""

    _batcher: Batcher[TokenIds, "Vector"]
    _loaded: "EmbeddingModel"
    _openai_tokens: OpenAITokens

    def __init__(self, spec: ModelSpec, open_source: Callable[[str], Path]) -> None:
        self.spec = spec
        self._open_source = open_source
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id} texts")
        self._facts: Mapping[str, Any] = {}

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
        return {"capabilities": ["embeddings"], "max_model_len": self.spec.max_model_len, **self._facts}

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """Each input is a job of its own, so a long list is split into batches and shares them with other requests.

        Raises InvalidRequest naming the input at fault, QueueFull when not all of them may wait.
        """
        self._refuse_other_dimensions(request.dimensions)
        with self._batcher.place(caller, len(request.inputs)):
            token_ids = await self._token_ids(request)
        jobs: list[Job[TokenIds, Vector]] = [Job(ids, caller, cost=len(ids)) for ids in token_ids]
        vectors = await self._batcher.submit_all(jobs)
        return Embeddings(np.stack(vectors), sum(map(len, token_ids)))

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
        token_ids = []
        for index, item in enumerate(request.inputs[start : start + _INPUTS_PER_TURN], start):
            if not isinstance(item, str) and len(item) > self._loaded.max_model_len * _MAX_CHARACTERS_PER_TOKEN:
                raise self._overlong(index, f"{len(item)} tokens")
            if not isinstance(item, str) and not request.openai_ids:
                ids = self._with_special_tokens(index, item)
            else:
                ids = self._tokenize_text(index, item if isinstance(item, str) else self._openai_text(index, item))
            if len(ids) > self._loaded.max_model_len:
                raise self._overlong(index, f"{len(ids)} tokens")
            token_ids.append(ids)
        return token_ids

    def _tokenize_text(self, index: int, text: str) -> TokenIds:
        # Far longer than any text of so many tokens; a tokenizer takes seconds for a few megabytes.
        if len(text) > self._loaded.max_model_len * _MAX_CHARACTERS_PER_TOKEN:
            raise self._overlong(index, f"{len(text)} characters")
        ids: TokenIds = self._loaded.tokenizer(text, verbose=False)["input_ids"]
        return ids

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
            return self._openai_tokens.decode(ids)
        except KeyError as unknown:
            raise InvalidRequest(
                f"Input {index} has a token id that OpenAI's tokenizer does not know ({unknown}). Send text, or token "
                f"ids of the model's own tokenizer under its own name, `{self.spec.id}`.",
                f"input[{index}]",
                "invalid_value",
            ) from None

    def _with_special_tokens(self, index: int, ids: TokenIds) -> TokenIds:
        """Token arrays are ids of the model's own tokenizer, without its special tokens, which are added here."""
        vocabulary = len(self._loaded.tokenizer)
        if any(not 0 <= id < vocabulary for id in ids):
            raise InvalidRequest(
                f"Input {index} has token ids that `{self.spec.id}` does not know (its vocabulary ends at "
                f"{vocabulary - 1}). Ids of another tokenizer mean other words here: send text instead. {_LANGCHAIN}",
                f"input[{index}]",
                "invalid_value",
            )
        return [*self._prefix, *ids, *self._suffix]

    def _load(self) -> "TransformersEmbedder":
        from handlers.embeddings.engine import TransformersEmbedder, load
        from handlers.pretrained import placement

        self._loaded = load(self.spec, self._open_source(self.spec.source))
        self._facts = {
            "max_model_len": self._loaded.max_model_len,
            "dimensions": self._loaded.dimensions,
            **placement(self._loaded.model),
        }
        self._prefix, self._suffix = _special_tokens(self._loaded.tokenizer)
        embedder = TransformersEmbedder(self._loaded, self.spec.limits.max_batch_cost)
        if self.spec.openai_tokens is not None:
            self._openai_tokens = OpenAITokens(self._open_source(self.spec.openai_tokens))
        embedder.embed(self._tokenize(EmbeddingRequest(["Hello", "Hello, world"]), 0))
        return embedder


def _special_tokens(tokenizer: Any) -> tuple[TokenIds, TokenIds]:
    """What the tokenizer puts before and after a text, found by tokenizing one with and without."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
