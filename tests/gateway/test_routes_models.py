"""What is served, and whether it is ready."""

import httpx2
import pytest
from openai.types import Model

from tests.gateway.fakes import FakeChat, FakeEmbeddings, app

pytestmark = pytest.mark.anyio


async def get(path: str, *, ready: bool = True) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(FakeChat(), FakeEmbeddings(), ready=ready))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get(path)


async def test_every_model_is_listed_once_with_its_aliases() -> None:
    body = (await get("/v1/models")).json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == ["org/chat", "mini-embed"]
    chat = body["data"][0]
    assert chat == {
        "id": "org/chat",
        "object": "model",
        "created": chat["created"],
        "owned_by": "local",
        "capabilities": ["chat"],
        "max_model_len": 512,
        "aliases": ["gpt-4o-mini", "gpt-4o"],
        "loaded": True,
    }
    Model.model_validate(chat, strict=True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/org/chat", "org/chat"),
        ("/v1/models/org%2Fchat", "org/chat"),
        ("/v1/models/gpt-4o", "gpt-4o"),
        ("/v1/models/mini-embed", "mini-embed"),
    ],
)
async def test_a_model_is_found_by_id_or_alias_and_has_the_name_asked_for(path: str, name: str) -> None:
    response = await get(path)
    assert (response.status_code, response.json()["id"]) == (200, name)


@pytest.mark.parametrize("path", ["/v1/models/gpt-9", "/v1/models/org", "/v1/models/%00"])
async def test_an_unknown_model_is_404(path: str) -> None:
    response = await get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_health_says_alive_and_readiness_says_which_models_are_warm() -> None:
    assert (await get("/healthz", ready=False)).json() == {"status": "ok"}
    loading, ready = await get("/readyz", ready=False), await get("/readyz")
    assert (loading.status_code, ready.status_code) == (503, 200)
    assert loading.json() == {"status": "loading", "models": {"org/chat": "loading", "mini-embed": "loading"}}
    assert ready.json() == {"status": "ready", "models": {"org/chat": "ready", "mini-embed": "ready"}}
    assert (await get("/v1/models", ready=False)).json()["data"][0]["loaded"] is False


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v2/rerank", "/v1/audio/speech"])
async def test_a_wrong_method_is_405(path: str) -> None:
    response = await get(path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
