"""LangChain's and LlamaIndex's classes for OpenAI's embeddings, of which only the base URL is changed.

They bring 40 packages, so this runs when asked for: pytest -m clients_extra. What they send is recorded in
test_openai_python.py.
"""

from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI

from handlers.sources import fetch
from handlers.starter import OPENAI_TOKENS

pytestmark = [pytest.mark.models, pytest.mark.clients_extra, pytest.mark.filterwarnings("default")]

TEXTS = ["hello world", "A cat sits on the mat."]


@pytest.fixture(scope="module")
def expected(client: OpenAI) -> np.ndarray:
    reply = client.embeddings.create(model="all-minilm-l6-v2", input=TEXTS)
    return np.array([item.embedding for item in reply.data])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> None:
    """tiktoken finds its vocabulary here instead of fetching it."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(fetch(OPENAI_TOKENS, models_dir, offline=True)))


@pytest.mark.parametrize("as_tokens", [True, False])
def test_langchain_embeds_by_token_ids_and_by_text(base_url: str, expected: np.ndarray, as_tokens: bool) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(base_url=base_url, api_key="unused", check_embedding_ctx_length=as_tokens)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[1]), expected[1], atol=1e-6)


@pytest.mark.anyio
async def test_langchain_embeds_asynchronously(base_url: str, expected: np.ndarray) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(base_url=base_url, api_key="unused")
    np.testing.assert_allclose(await embeddings.aembed_documents(TEXTS), expected, atol=1e-6)


def test_llama_index_embeds_texts_and_queries(base_url: str, expected: np.ndarray) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeddings = OpenAIEmbedding(api_base=base_url, api_key="unused")
    np.testing.assert_allclose(embeddings.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(embeddings.get_query_embedding(TEXTS[1]), expected[1], atol=1e-6)
