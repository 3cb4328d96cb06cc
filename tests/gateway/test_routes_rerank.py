"""POST /v1/rerank and its aliases through the real route, in the shapes of Cohere's and Jina's clients."""

from typing import Any

import httpx2
import orjson
import pytest
from pydantic import BaseModel, ConfigDict

from batching.errors import EngineFailed, QueueFull
from batching.job import Priority
from tests.gateway.fakes import Connection, FakeChat, FakeReranker, app

pytestmark = pytest.mark.anyio

DOCUMENTS = ["medium", "longest one", "short", "middle"]
RERANK = {"model": "mini-rerank", "query": "which?", "documents": DOCUMENTS}


async def post(
    handler: FakeReranker, path: str = "/v1/rerank", *, strict: bool = False, **fields: Any
) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler, FakeChat(), strict_params=strict))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post(path, json={**RERANK, **fields})


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class CohereResult(Strict):
    """As in cohere.types.RerankResponseResultsItem, version 7."""

    class Document(Strict):
        text: str

    index: int
    relevance_score: float
    document: Document | None = None


class CohereReply(Strict):
    """As in cohere.types.RerankResponse, version 7."""

    class Meta(Strict):
        class BilledUnits(Strict):
            search_units: float

        class Tokens(Strict):
            input_tokens: float

        billed_units: BilledUnits
        tokens: Tokens

    id: str
    results: list[CohereResult]
    meta: Meta


class JinaReply(Strict):
    """As https://api.jina.ai/v1/rerank answers."""

    class Usage(Strict):
        total_tokens: int

    model: str
    object: str
    usage: Usage
    results: list[CohereResult]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_the_best_document_comes_first_and_equal_ones_in_their_order(path: str) -> None:
    response = await post(FakeReranker(), path)
    body = response.json()
    assert response.status_code == 200
    assert body["results"] == [
        {"index": 1, "relevance_score": 1.1},
        {"index": 0, "relevance_score": 0.6},
        {"index": 3, "relevance_score": 0.6},
        {"index": 2, "relevance_score": 0.5},
    ]
    assert body["id"].startswith("rerank-")
    assert (body["object"], body["model"]) == ("list", "mini-rerank")
    assert body["usage"] == {"prompt_tokens": 28, "total_tokens": 28}
    assert body["meta"] == {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 28}}


COHERE_V2 = {"model": "rerank-v3.5", "query": "q", "documents": ["a", "bcd"], "top_n": 1, "max_tokens_per_doc": 4096}
COHERE_V1 = {
    "model": "rerank-v3.5",
    "query": "q",
    "documents": [{"text": "a", "title": "first"}, "bcd"],
    "rank_fields": ["text"],
    "return_documents": True,
}
JINA = {"model": "mini-rerank", "query": "q", "documents": [{"text": "a"}, "bcd"], "top_n": 2, "return_documents": True}
TEI = {"model": "mini-rerank", "query": "q", "texts": ["a", "bcd"], "raw_scores": True, "truncate": False}


@pytest.mark.parametrize(
    ("path", "body", "results"),
    [
        ("/v2/rerank", {**COHERE_V2, "priority": 0}, [{"index": 1, "relevance_score": 0.3}]),
        (
            "/v1/rerank",
            COHERE_V1,
            [
                {"index": 1, "relevance_score": 0.3, "document": {"text": "bcd"}},
                {"index": 0, "relevance_score": 0.1, "document": {"text": "a", "title": "first"}},
            ],
        ),
        (
            "/v1/rerank",
            JINA,
            [
                {"index": 1, "relevance_score": 0.3, "document": {"text": "bcd"}},
                {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
            ],
        ),
        ("/rerank", TEI, [{"index": 1, "relevance_score": -1.0}, {"index": 0, "relevance_score": -3.0}]),
    ],
    ids=["cohere-v2", "cohere-v1", "jina", "tei"],
)
async def test_requests_as_other_clients_send_them(path: str, body: Any, results: list[Any]) -> None:
    transport = httpx2.ASGITransport(app=app(FakeReranker(), strict_params=True))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.post(path, json=body)
    assert response.json()["results"] == results
    assert "x-ignored-params" not in response.headers
    CohereReply.model_validate_json(response.content)
    JinaReply.model_validate_json(response.content)


async def test_what_is_asked_reaches_the_handler() -> None:
    handler = FakeReranker()
    response = await post(handler, max_tokens_per_doc=7, instruction="Find it", priority=3, user="ada", colour="red")
    [(request, caller)] = handler.calls
    assert (request.query, request.documents) == ("which?", DOCUMENTS)
    assert (request.max_tokens_per_doc, request.instruction) == (7, "Find it")
    assert caller.priority is Priority.BACKGROUND
    assert response.headers["x-ignored-params"] == "colour,user"


@pytest.mark.parametrize("top_n", [1, 3, 4, 99])
async def test_only_the_best_are_returned_when_so_many_are_asked_for(top_n: int) -> None:
    body = (await post(FakeReranker(), top_n=top_n)).json()
    assert [result["index"] for result in body["results"]] == [1, 0, 3, 2][:top_n]


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2), (2048, 21)])
async def test_a_search_unit_is_a_hundred_documents(documents: int, units: int) -> None:
    body = (await post(FakeReranker(), documents=["x"] * documents)).json()
    assert body["meta"]["billed_units"] == {"search_units": units}
    assert [result["index"] for result in body["results"]] == list(range(documents))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"query": ""}, "query", "invalid_value"),
        ({"query": None}, "query", "missing_required_parameter"),
        ({"query": ["which?"]}, "query", "invalid_type"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"documents": None}, "documents", "missing_required_parameter"),
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": "one"}, "documents", "invalid_type"),
        ({"documents": {"text": "one"}}, "documents", "invalid_type"),
        ({"documents": ["one", 2]}, "documents[1]", "invalid_type"),
        ({"documents": ["one", None]}, "documents[1]", "invalid_type"),
        ({"documents": ["one", ""]}, "documents[1]", "invalid_value"),
        ({"documents": [{"text": ""}]}, "documents[0].text", "invalid_value"),
        ({"documents": [{"text": 1}]}, "documents[0].text", "invalid_type"),
        ({"documents": [{"title": "one"}]}, "documents[0].text", "missing_required_parameter"),
        ({"documents": [{"text": "one", "image": "data:"}]}, "documents[0].image", "unsupported_parameter"),
        ({"documents": [{str(i): "x" for i in range(257)}]}, "documents[0]", None),
        ({"documents": ["x"] * 2049}, "documents", "invalid_value"),
        ({"documents": ["x"] * 100_000}, "documents", "invalid_value"),
        ({"documents": None, "texts": ["one", ""]}, "texts[1]", "invalid_value"),
        ({"texts": ["one"]}, "texts", None),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"top_n": 1.5}, "top_n", "invalid_type"),
        ({"return_documents": "yes"}, "return_documents", "invalid_type"),
        ({"raw_scores": 1}, "raw_scores", "invalid_type"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "invalid_value"),
        ({"max_chunks_per_doc": 10}, "max_chunks_per_doc", "unsupported_parameter"),
        ({"rank_fields": ["title"]}, "rank_fields", "unsupported_parameter"),
        ({"truncate": True}, "truncate", "unsupported_parameter"),
        ({"instruction": ""}, "instruction", "invalid_value"),
        ({"model": "org/chat"}, "model", None),
    ],
)
async def test_a_mistake_is_named_before_anything_is_scored(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    handler = FakeReranker()
    response = await post(handler, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"] and not handler.calls


async def test_a_model_that_is_no_reranker_names_one_that_is() -> None:
    message = (await post(FakeReranker(), model="org/chat")).json()["error"]["message"]
    assert message == "The model `org/chat` is for chat, not for rerank. Served here for rerank: mini-rerank."


async def test_an_unknown_model_is_404_and_an_unknown_parameter_400_where_that_is_asked_for() -> None:
    unknown = await post(FakeReranker(), model="other")
    strict = await post(FakeReranker(), strict=True, colour="red")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (strict.status_code, strict.json()["error"]["param"]) == (400, "colour")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(QueueFull(8), 503, "server_is_overloaded"), (EngineFailed("not finite"), 500, "engine_failed")],
)
async def test_what_goes_wrong_later_is_an_error_in_the_usual_form(error: Exception, status: int, code: str) -> None:
    response = await post(FakeReranker(error=error))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_a_client_that_leaves_withdraws_the_request(path: str) -> None:
    handler = FakeReranker()
    handler.gate.clear()
    connection = Connection(path, RERANK)
    await connection.leave_when(handler.started, app(handler))
    assert handler.cancelled


async def test_a_reply_with_documents_is_json_to_the_letter() -> None:
    text = 'ü "quoted" \\ \u2028'
    response = await post(FakeReranker(), documents=[text], return_documents=True)
    assert orjson.loads(response.content)["results"][0]["document"] == {"text": text}
