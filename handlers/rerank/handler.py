"""Reranking: a query and documents in, one relevance each out, batched with everybody else's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batching.batcher import Batcher
from batching.job import Caller, Job
from batching.worker import Worker
from handlers.rerank.pairs import Pair, Pairs
from handlers.rerank.texts import DOCUMENTS_PER_TURN
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec
from handlers.stats import ModelStats

if TYPE_CHECKING:
    from handlers.rerank.engine import Reranker


class RerankerHandler:
    """A model that reads a query and a document together."""

    _batcher: Batcher[Pair, float]
    _pairs: Pairs

    def __init__(self, spec: ModelSpec, open_source: Callable[[str], Path]) -> None:
        self.spec = spec
        self._open_source = open_source
        self._worker = Worker(spec.id)
        self._preparation = Worker(f"{spec.id} texts")
        self._facts: Mapping[str, Any] = {}
        self._prompt_tokens = 0

    async def load(self) -> None:
        from handlers.encoders.batches import encoder_batcher

        reranker = await self._worker.run(self._load)
        self._batcher = encoder_batcher(self.spec, reranker.score, reranker.device, worker=self._worker)

    async def run(self) -> None:
        await self._batcher.run()

    async def drain(self) -> None:
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        return {"capabilities": ["rerank"], "max_model_len": self.spec.max_model_len, **self._facts}

    def stats(self) -> ModelStats:
        return ModelStats(self._batcher.stats(), prompt_tokens=self._prompt_tokens)

    async def rerank(self, request: RerankRequest, caller: Caller) -> Relevance:
        """Each pair is a job of its own, so a long list is split into batches and shares them with other requests.

        Raises InvalidRequest naming the query or the document at fault, QueueFull when not all of them may wait.
        """
        with self._batcher.place(caller, len(request.documents)):
            pairs = await self._prepare(request)
        self._prompt_tokens += sum(map(len, pairs))
        jobs: list[Job[Pair, float]] = [Job(pair, caller, cost=len(pair)) for pair in pairs]
        logits = np.array(await self._batcher.submit_all(jobs))
        return Relevance(logits, _sigmoid(logits), sum(map(len, pairs)))

    async def _prepare(self, request: RerankRequest) -> list[Pair]:
        before = await self._preparation.run(self._pairs.before, request)
        pairs: list[Pair] = []
        for start in range(0, len(request.documents), DOCUMENTS_PER_TURN):
            pairs += await self._preparation.run(self._pairs.of, request, before, start)
        return pairs

    def _load(self) -> "Reranker":
        from handlers.pretrained import placement
        from handlers.rerank.engine import Reranker, load

        loaded = load(self.spec, self._open_source(self.spec.source))
        self._facts = {
            "max_model_len": loaded.max_model_len,
            "scoring": loaded.scoring,
            **placement(loaded.scorer),
        }
        self._pairs = Pairs(self.spec.id, loaded.tokenizer, loaded.layout, loaded.max_model_len)
        reranker = Reranker(loaded)
        hello = RerankRequest("Hello", ["Hello", "Hello, world"])
        reranker.score(self._pairs.of(hello, self._pairs.before(hello), 0))
        return reranker


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # 1 / (1 + exp(-x)) would overflow.
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))
    return probabilities
