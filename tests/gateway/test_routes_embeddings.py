"""POST /v1/embeddings through the real route."""

import asyncio
import base64
from typing import Any

import httpx2
import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from batching.errors import QueueFull
from gateway.routes.embeddings import FLOATS_PER_TURN, encoded
from handlers.embeddings.types import Embeddings
from tests.gateway.fakes import Connection, FakeEmbeddings, app

pytestmark = pytest.mark.anyio

EMBED = {"model": "mini-embed", "input": ["a", "bcd"]}
VECTORS = [[1.0, 0.5, -1 / 3, 0.0], [3.0, 0.5, -1 / 3, 0.0]]


async def post(handler: FakeEmbeddings, **fields: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post("/v1/embeddings", json={**EMBED, **fields})


async def test_vectors_come_as_floats_with_usage() -> None:
    response = await post(FakeEmbeddings())
    assert response.headers["content-type"] == "application/json"
    body = CreateEmbeddingResponse.model_validate_json(response.content, strict=True)
    assert [item.index for item in body.data] == [0, 1]
    assert (
        np.array([item.embedding for item in body.data], np.float32).tolist() == np.array(VECTORS, np.float32).tolist()
    )
    assert (body.model, body.usage.prompt_tokens, body.usage.total_tokens) == ("mini-embed", 4, 4)


async def test_base64_is_the_same_as_little_endian_float32() -> None:
    body = (await post(FakeEmbeddings(), encoding_format="base64")).json()
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() for item in body["data"]]
    assert vectors == np.array(VECTORS, np.float32).tolist()


async def test_what_is_asked_reaches_the_handler() -> None:
    handler = FakeEmbeddings()
    response = await post(handler, input=[[1, 2], [3]], dimensions=4, user="ada")
    [(request, _)] = handler.calls
    assert (request.inputs, request.dimensions) == ([[1, 2], [3]], 4)
    assert response.headers["x-ignored-params"] == "user"


async def test_what_the_model_ignores_is_told_with_the_rest() -> None:
    response = await post(FakeEmbeddings(), input_type="query", user="ada")
    assert response.headers["x-ignored-params"] == "input_type,user"


@pytest.mark.parametrize(
    ("digest", "own", "expected"), [("", None, ""), ("ab12", None, "ab12:"), ("", "s", ":s"), ("ab12", "s", "ab12:s")]
)
async def test_keys_share_no_cached_vectors(digest: str, own: str | None, expected: str) -> None:
    handler = FakeEmbeddings()
    connection = Connection("/v1/embeddings", {**EMBED, "cache_salt": own})
    connection.scope["gateway.caller"] = digest
    await app(handler)(connection.scope, connection.receive, connection.send)
    [(request, _)] = handler.calls
    assert (connection.status, request.cache_salt) == (200, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_vectors_that_are_not_finite_are_never_sent(value: float, encoding_format: str) -> None:
    response = await post(FakeEmbeddings(value=value), encoding_format=encoding_format)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")


async def test_a_full_queue_answers_503() -> None:
    response = await post(FakeEmbeddings(error=QueueFull(8)))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_the_loop_gets_its_turn_while_a_large_reply_is_written() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count_turns())
    vectors = np.zeros((5, FLOATS_PER_TURN // 2), np.float32)
    await encoded(Embeddings(vectors, 5), "m", "base64")
    counter.cancel()
    assert turns == 2


async def test_a_client_that_leaves_withdraws_the_request() -> None:
    handler = FakeEmbeddings()
    handler.gate.clear()
    connection = Connection("/v1/embeddings", EMBED)
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled
