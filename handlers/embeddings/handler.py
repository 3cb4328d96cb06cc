"""Embeddings: texts or token ids in, one vector each out, batched with everybody else's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anyio.lowlevel import checkpoint

from batching.batcher import Batcher
from batching.job import Caller
from batching.worker import Worker
from handlers.embeddings.cache import VectorCache
from handlers.embeddings.dimensions import Vector, shaped
from handlers.embeddings.openai_tokens import OpenAITokens
from handlers.embeddings.texts import INPUTS_PER_TURN, Texts
from handlers.embeddings.types import EmbeddingRequest, Embeddings, TokenIds
from handlers.embeddings.vectors import Input, Vectors
from handlers.errors import InvalidRequest
from handlers.rerank.cosine import CosineTexts, relevance
from handlers.rerank.texts import DOCUMENTS_PER_TURN
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats

if TYPE_CHECKING:
    from handlers.embeddings.engine import Embedder, EmbeddingModel

_FLOATS_PER_TURN = 1 << 20  # about 2 ms of copying and dividing


class SentenceEncoderHandler:
    """A sentence encoder. reranks: it also answers rerank requests, by the cosine of the vectors."""

    _batcher: Batcher[TokenIds, Vector]
    _loaded: "EmbeddingModel"
    _texts: Texts
    _vectors: Vectors
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
        from handlers.encoders.batches import encoder_batcher

        embedder = await self._worker.run(self._load)
        self._batcher = encoder_batcher(self.spec, embedder.embed, self._loaded.encoder.device, worker=self._worker)
        kept = self.spec.embedding_cache_bytes
        self._vectors = Vectors(self._batcher, VectorCache(kept) if kept else None)

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        also = {"capabilities": ["embeddings", "rerank"], "scoring": "cosine"} if self._reranks else {}
        facts = {"max_model_len": self.spec.max_model_len, **self._facts}
        return {"capabilities": ["embeddings"], **also, **facts}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), prompt_tokens=self._prompt_tokens, cache=self._vectors.stats)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """Each input is a job of its own, so a long list is split into batches and shares them with other requests.

        Raises InvalidRequest naming the parameter or input at fault, QueueFull when not all of them may wait.
        """
        dimensions = self._loaded.dimensions.check(self.spec.id, request.dimensions)
        prompt = self._loaded.prompts.text(request.prompt)
        self._refuse_prompted_ids(request, prompt)
        with self._batcher.place(caller, len(request.inputs)):
            inputs = await self._read(request, prompt or "")
        vectors = await self._vectors.of(inputs, caller)
        normalize = self._loaded.pooling.normalizes if request.normalize is None else request.normalize
        ignored = (request.prompt.param,) if request.prompt and prompt is None else ()
        tokens = sum(len(item.token_ids) for item in inputs)
        self._prompt_tokens += tokens
        return Embeddings(await _stacked(vectors, dimensions, normalize=normalize), tokens, ignored)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Relevance:
        """As RerankHandler.rerank: the query and each document are an input each, from the cache if they are there."""
        with self._batcher.place(caller, 1 + len(request.documents)):
            inputs = [await self._preparation.run(self._cosine_texts.query, request)]
            for start in range(0, len(request.documents), DOCUMENTS_PER_TURN):
                inputs += await self._preparation.run(self._cosine_texts.documents, request, start)
        query, *documents = await self._vectors.of(inputs, caller)
        tokens = sum(len(item.token_ids) for item in inputs)
        self._prompt_tokens += tokens
        return relevance(query, documents, tokens)

    def _refuse_prompted_ids(self, request: EmbeddingRequest, prompt: str | None) -> None:
        """A prompt is a text, and tokens of the whole are not those of its parts."""
        if not prompt or request.openai_ids or all(isinstance(item, str) for item in request.inputs):
            return
        if request.prompt:
            param = request.prompt.param
            message = f"Token ids cannot have a prompt before them. Send texts, or leave '{param}' out."
        else:
            param, name = "input", self._loaded.prompts.default
            message = (
                f"`{self.spec.id}` puts its prompt {name!r} before every text; token ids cannot have one. Send texts."
            )
        raise InvalidRequest(message, param, "invalid_value")

    async def _read(self, request: EmbeddingRequest, prompt: str) -> list[Input]:
        """A few inputs at a time, so that a long list does not keep everybody else's waiting."""
        inputs: list[Input] = []
        for start in range(0, len(request.inputs), INPUTS_PER_TURN):
            inputs += await self._preparation.run(self._texts.read, request, prompt, start)
        return inputs

    def _load(self) -> "Embedder":
        from handlers.embeddings.engine import Embedder, load

        loaded = self._loaded = load(self.spec, self._open_source(self.spec.source))
        self._facts = _facts(loaded)
        vocabulary = self.spec.openai_tokens
        openai_tokens = OpenAITokens(self._open_source(vocabulary)) if vocabulary is not None else None
        texts = self._texts = Texts(self.spec.id, loaded.tokenizer, loaded.max_model_len, openai_tokens)
        self._cosine_texts = CosineTexts(
            self.spec.id,
            loaded.tokenizer,
            loaded.prompts,
            opening=texts.opening,
            closing=texts.closing,
            max_model_len=loaded.max_model_len,
        )
        embedder = Embedder(loaded)
        embedder.embed([item.token_ids for item in texts.read(EmbeddingRequest(["Hello", "Hello, world"]), "", 0)])
        return embedder


def _facts(loaded: "EmbeddingModel") -> Mapping[str, Any]:
    from handlers.pretrained import placement

    dimensions, prompts = loaded.dimensions, loaded.prompts
    return {
        "max_model_len": loaded.max_model_len,
        "dimensions": dimensions.native,
        **({"matryoshka_dimensions": dimensions.described} if dimensions.shorter else {}),
        **({"prompts": list(prompts.names), "default_prompt_name": prompts.default} if prompts.names else {}),
        **placement(loaded.encoder),
    }


async def _stacked(vectors: Sequence[Vector], dimensions: int, *, normalize: bool) -> Vector:
    """[vectors, dimensions]. A few at a time, so that everybody else has a turn."""
    stacked = np.empty((len(vectors), dimensions), np.float32)
    turn = max(1, _FLOATS_PER_TURN // len(vectors[0]))
    for start in range(0, len(vectors), turn):
        if start:
            await checkpoint()
        part = np.stack(vectors[start : start + turn])
        stacked[start : start + turn] = shaped(part, dimensions, normalize=normalize)
    return stacked
