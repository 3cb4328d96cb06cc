"""The application as a whole: lifespan, routes and middleware together, around fakes."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.types import ASGIApp

from batching.errors import QueueFull
from gateway.app import create_app
from gateway.settings import Settings
from handlers.errors import ModelLoadError
from tests.gateway.fakes import FakeChat, FakeTranscription
from tests.proxy.chaos_upstream import answer, chaos_upstream

pytestmark = pytest.mark.anyio

HELLO = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
ELSEWHERE = {**HELLO, "model": "gpt-9", "tools": [{"type": "unheard of"}]}
JSON = (b"content-type", b"application/json")
SERVED_ELSEWHERE = b'{"id": "from upstream"}'


class FailsToLoad(FakeChat):
    async def load(self) -> None:
        raise ModelLoadError("model org/chat: the disk is empty")


@asynccontextmanager
async def started(app: Starlette) -> AsyncIterator[ASGIApp]:
    """The app with its lifespan running, as a server would have it."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        yield with_state


@asynccontextmanager
async def client_of(app: Starlette, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with started(app) as running:
        transport = httpx2.ASGITransport(running, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            yield client


async def until_ready(client: httpx2.AsyncClient) -> None:
    while (await client.get("/readyz")).status_code != 200:
        await anyio.lowlevel.checkpoint()


async def test_it_is_alive_at_once_and_ready_when_its_models_are_warm() -> None:
    ready = anyio.Event()
    app = create_app(Settings(models="none"), handlers=[FakeChat()], on_ready=lambda registry: ready.set())
    async with client_of(app) as client:
        assert (await client.get("/healthz")).status_code == 200
        await ready.wait()
        assert (await client.get("/readyz")).json() == {"status": "ready", "models": {"org/chat": "ready"}}


async def test_a_model_that_cannot_be_loaded_is_reported_once_and_the_rest_of_the_lifespan_goes_on() -> None:
    failures: list[str] = []
    app = create_app(Settings(models="none"), handlers=[FailsToLoad()], on_failure=failures.append)
    async with client_of(app) as client:
        await anyio.wait_all_tasks_blocked()
        assert (await client.get("/healthz")).status_code == 200
        reply = await client.post("/v1/chat/completions", json=HELLO)
    assert failures == ["model org/chat: the disk is empty"]
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
    assert int(reply.headers["retry-after"]) >= 1


async def test_every_reply_passes_the_middleware() -> None:
    app = create_app(Settings(models="none", api_keys=(SecretStr("key"),)), handlers=[FakeChat()])
    async with client_of(app) as client:
        await until_ready(client)
        refused = await client.post("/v1/chat/completions", json=HELLO)
        answered = await client.post("/v1/chat/completions", json=HELLO, headers={"authorization": "Bearer key"})
    assert (refused.status_code, answered.status_code) == (401, 200)
    for reply in (refused, answered):
        assert reply.headers["x-request-id"].startswith("req_")
        assert int(reply.headers["openai-processing-ms"]) >= 0


async def test_a_full_queue_is_a_503_that_says_when_to_come_back() -> None:
    app = create_app(Settings(models="none"), handlers=[FakeChat(refusal=QueueFull(64, retry_after=7))])
    async with client_of(app) as client:
        await until_ready(client)
        reply = await client.post("/v1/chat/completions", json=HELLO)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
    assert reply.json()["error"]["code"] == "server_is_overloaded"


async def test_what_is_not_served_here_goes_to_the_upstream_unjudged() -> None:
    async with chaos_upstream(answer(200, (JSON,), SERVED_ELSEWHERE)) as upstream:
        app = create_app(Settings(models="none", upstream_url=upstream.url), handlers=[FakeChat(), FakeTranscription()])
        async with client_of(app) as client:
            await until_ready(client)
            local = await client.post("/v1/chat/completions", json=HELLO)
            chat = await client.post("/v1/chat/completions", json=ELSEWHERE)
            audio = [
                await client.post(f"/v1/audio/{path}", data={"model": "gpt-9"}, files={"file": ("a.wav", b"RIFF")})
                for path in ("transcriptions", "translations")
            ]
            ranked = [await client.post(path, json={"model": "rr"}) for path in ("/v1/rerank", "/v2/rerank", "/rerank")]
            model = await client.get("/v1/models/gpt-9")
            other = await client.post("/v1/images/generations", json={"model": "gpt-4o-mini"})
    assert (local.headers["x-served-by"], local.headers["x-served-because"]) == ("local", "served-here")
    for reply in (chat, *audio, *ranked, model, other):
        assert (reply.content, reply.headers["x-served-by"]) == (SERVED_ELSEWHERE, "upstream")


async def test_with_an_upstream_the_local_models_still_get_their_uploads_and_their_errors() -> None:
    transcription = FakeTranscription()
    async with chaos_upstream(answer(200, (JSON,), SERVED_ELSEWHERE)) as upstream:
        app = create_app(Settings(models="none", upstream_url=upstream.url), handlers=[transcription])
        async with client_of(app) as client:
            await until_ready(client)
            files = {"file": ("a.wav", b"RIFF and so on")}
            heard = await client.post("/v1/audio/transcriptions", data={"model": "tiny-whisper"}, files=files)
            broken = await client.post("/v1/chat/completions", content=b"{")
            nameless = await client.post("/v1/chat/completions", json={"messages": []})
    assert heard.status_code == 200 and transcription.files == [b"RIFF and so on"]
    assert (broken.status_code, nameless.status_code) == (400, 400)


async def test_without_models_everything_below_v1_is_the_upstreams() -> None:
    async with chaos_upstream(answer(200, (JSON,), SERVED_ELSEWHERE)) as upstream:
        app = create_app(Settings(models="none", upstream_url=upstream.url))
        async with client_of(app) as client:
            for reply in (await client.get("/v1/models"), await client.post("/v1/chat/completions", json=HELLO)):
                assert reply.content == SERVED_ELSEWHERE


async def test_without_an_upstream_what_is_unknown_is_refused() -> None:
    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat()])) as client:
        unknown = await client.post("/v1/images/generations", json={})
        wrong_method = await client.get("/v1/embeddings")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


def test_the_proxy_alone_does_not_import_torch() -> None:
    program = """
import sys
from gateway.app import create_app
from gateway.settings import Settings
create_app(Settings.load({"GATEWAY_MODELS": "none", "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/v1"}, None))
print(sorted({"torch", "transformers", "librosa", "onnxruntime"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


async def test_a_trailing_slash_leads_nowhere() -> None:
    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat()])) as client:
        reply = await client.post("/v1/chat/completions/", json=HELLO, headers={"host": "evil.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


async def test_a_request_to_speak_another_protocol_is_refused_and_the_connection_closed() -> None:
    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat()])) as client:
        reply = await client.post("/v1/chat/completions", json=HELLO, headers={"upgrade": "h2c"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "upgrade")
    assert reply.headers["connection"] == "close"
