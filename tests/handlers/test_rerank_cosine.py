"""Reranking by the cosine of an embeddings model, on a tiny random one."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batching.job import Caller
from handlers.embeddings.handler import SentenceEncoderHandler
from handlers.embeddings.types import EmbeddingRequest
from handlers.errors import InvalidRequest
from handlers.factory import create_handlers
from handlers.registry import Registry
from handlers.rerank.types import Relevance, RerankRequest
from handlers.spec import ModelSpec, Task
from tests.handlers.running import running
from tests.handlers.tiny import (
    save_embedding_model,
)

pytestmark = pytest.mark.anyio

QUERY = "red cat"
TEXTS = ["the cat", "a dog sat on the mat", "red"]


async def rerank(handler: SentenceEncoderHandler, query: str, documents: Sequence[str], **options: Any) -> Relevance:
    return await handler.rerank(RerankRequest(query, documents, **options), Caller())


@asynccontextmanager
async def embedding(folder: Path) -> AsyncIterator[SentenceEncoderHandler]:
    described = ModelSpec("tiny", Task.EMBEDDINGS, "dir:x", dtype="float32")
    async with running(SentenceEncoderHandler(described, lambda source: folder, reranks=True)) as handler:
        yield handler


@pytest.mark.parametrize("normalize", [True, False])
async def test_an_embeddings_model_scores_by_the_cosine(tmp_path: Path, normalize: bool) -> None:
    async with embedding(save_embedding_model(tmp_path, normalize=normalize)) as handler:
        relevance = await rerank(handler, QUERY, TEXTS)
        embeddings = await handler.embed(EmbeddingRequest([QUERY, *TEXTS]), Caller())
    query, *documents = (vector / np.linalg.norm(vector) for vector in embeddings.vectors.astype(np.float64))
    cosines = [float(query @ document) for document in documents]
    np.testing.assert_allclose(relevance.raw, cosines, atol=1e-6)
    np.testing.assert_allclose(relevance.scores, [(1 + cosine) / 2 for cosine in cosines], atol=1e-6)
    assert relevance.tokens == embeddings.tokens


async def test_query_and_documents_have_their_prompts_and_are_kept_for_the_next_search(tmp_path: Path) -> None:
    folder = save_embedding_model(tmp_path)
    prompts = {"prompts": {"query": "cat ", "passage": "dog "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    async with embedding(folder) as handler:
        relevance = await rerank(handler, QUERY, TEXTS, max_tokens_per_doc=2)
        again = await rerank(handler, QUERY, TEXTS, max_tokens_per_doc=2)
        salted = await rerank(handler, QUERY, TEXTS, max_tokens_per_doc=2, cache_salt="mine")
        cache = handler.stats().cache
        texts = ["cat " + QUERY, *("dog " + " ".join(text.split()[:2]) for text in TEXTS)]
        vectors = (await handler.embed(EmbeddingRequest(texts), Caller())).vectors.astype(np.float64)
    query, *documents = (vector / np.linalg.norm(vector) for vector in vectors)
    np.testing.assert_allclose(relevance.raw, [float(query @ document) for document in documents], atol=1e-6)
    np.testing.assert_array_equal(relevance.raw, again.raw)
    np.testing.assert_array_equal(relevance.raw, salted.raw)
    different = len(set(texts))
    assert cache is not None and (cache.misses, cache.hits) == (2 * different, 3 * len(texts) - 2 * different)


async def test_an_embeddings_model_names_what_does_not_fit_and_cuts_what_may_be_cut(tmp_path: Path) -> None:
    async with embedding(save_embedding_model(tmp_path)) as handler:
        with pytest.raises(InvalidRequest, match="The query is 31 tokens long") as query:
            await rerank(handler, "red " * 31, TEXTS)
        with pytest.raises(InvalidRequest, match="Document 1 is 31 tokens long") as document:
            await rerank(handler, QUERY, ["red", "red " * 31])
        with pytest.raises(InvalidRequest) as instruction:
            await rerank(handler, QUERY, TEXTS, instruction="Find cats")
        cut = await rerank(handler, QUERY, ["red " * 99], max_tokens_per_doc=2)
    assert [refused.value.param for refused in (query, document, instruction)] == [
        "query",
        "documents[1]",
        "instruction",
    ]
    assert cut.tokens == (2 + 2) + (2 + 2)


@pytest.mark.parametrize(("reranker", "capabilities"), [(False, ["embeddings", "rerank"]), (True, ["embeddings"])])
def test_embeddings_models_rerank_where_no_reranker_is_served(reranker: bool, capabilities: list[str]) -> None:
    specs = [ModelSpec("embed", Task.EMBEDDINGS, "dir:x"), *[ModelSpec("tiny", Task.RERANK, "dir:x")] * reranker]
    handlers = create_handlers(specs, Path, max_audio_seconds=1)
    assert handlers[0].describe()["capabilities"] == capabilities
    registry = Registry(handlers)
    for model in registry.models:
        model.ready = True
    if reranker:
        with pytest.raises(InvalidRequest, match="not for rerank. Served here for rerank: tiny."):
            registry.resolve("embed", Task.RERANK)
        assert registry.resolve("tiny", Task.RERANK) is handlers[1]
    else:
        assert registry.resolve("embed", Task.RERANK) is handlers[0]
