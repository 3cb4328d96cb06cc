"""The gateway in front of upstreams that behave and that do not: who answers, why, and what is counted of it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from batching.errors import EngineFailed, OutOfMemory, QueueFull
from gateway.app import create_app
from gateway.settings import Settings
from handlers.errors import ModelLoading
from proxy.routing import Mode
from tests.clock import MANUAL_CLOCK, advance, until
from tests.gateway.fakes import FakeChat, FakeTranscription
from tests.gateway.test_app import client_of, until_ready
from tests.proxy.chaos_upstream import (
    ChaosUpstream,
    answer,
    chaos_upstream,
    cut_after,
    event_stream,
    hang,
    refusing_upstream,
)

JSON = (b"content-type", b"application/json")
THERE = answer(headers=[JSON], body=b'{"object":"there"}')
CHAT = "/v1/chat/completions"
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
KEY, OTHER_KEY = SecretStr("a-key"), SecretStr("b-key")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


@asynccontextmanager
async def gateway(
    url: str, mode: str = "fallback", *handlers: Any, **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    options = {"models": "none", "upstream_url": url, "upstream_mode": mode, **settings}
    async with client_of(create_app(Settings(**options), handlers=handlers or [FakeChat()])) as client:
        await until_ready(client)
        yield client


async def ask(client: httpx2.AsyncClient, headers: Mapping[str, str] | None = None, **changes: Any) -> httpx2.Response:
    """Time passes meanwhile, as a retry waits for up to a tenth of a second."""
    request = asyncio.create_task(client.post(CHAT, json={**HELLO, **changes}, headers=headers))
    while not request.done():
        await advance(0.001)
    return request.result()


def who(reply: httpx2.Response) -> tuple[int, str | None, str | None]:
    return reply.status_code, reply.headers.get("x-served-by"), reply.headers.get("x-served-because")


async def counted(client: httpx2.AsyncClient, family: str) -> list[str]:
    text = (await client.get("/metrics")).text
    return [line.removeprefix(family) for line in text.splitlines() if line.startswith(family)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("refusal", "reason", "modes"),
    [
        (QueueFull(4, "requests", retry_after=3.0), "queue-full", ["overflow"]),
        (OutOfMemory("too large"), "out-of-memory", ["fallback", "overflow"]),
        (EngineFailed("broken"), "failing", ["fallback", "overflow"]),
        (ModelLoading("gpt-4o"), "loading", ["fallback", "overflow"]),
    ],
    ids=["full", "out of memory", "failing", "loading"],
)
async def test_what_a_model_here_refuses_goes_upstream_where_the_mode_says_so(
    refusal: Exception, reason: str, modes: list[str], stream: bool
) -> None:
    async with chaos_upstream(THERE) as server:
        for mode in ("off", "fallback", "overflow"):
            async with gateway(server.url, mode, FakeChat(refusal=refusal)) as client:
                reply = await ask(client, stream=stream)
                fallbacks = await counted(client, "gateway_upstream_fallbacks_total")
            if mode in modes:
                assert who(reply) == (200, "upstream", reason)
                assert fallbacks == [f'{{reason="{reason}",target="upstream"}} 1.0']
                assert json.loads(server.requests[-1].body) == {**HELLO, "stream": stream}
            else:
                assert reply.status_code >= 500
    assert len(server.requests) == len(modes)


async def test_a_refusal_here_stands_when_the_upstream_cannot_answer_either() -> None:
    full = FakeChat(refusal=QueueFull(4, "requests", retry_after=3.0))
    async with chaos_upstream(answer(404)) as server, gateway(server.url, "overflow", full) as client:
        reply = await ask(client)

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert reply.headers["retry-after"] == "3"


async def test_a_stream_that_has_begun_here_ends_here() -> None:
    late = FakeChat(wait_at=1, error=EngineFailed("broken"))
    async with chaos_upstream(THERE) as server, gateway(server.url, "overflow", late) as client:
        reply = await ask(client, stream=True)

    assert who(reply) == (200, "local", "served-here")
    assert '"engine_failed"' in reply.text
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503, 504])
async def test_in_mode_first_the_models_here_stand_in_for_an_upstream_that_is_not_well(status: int) -> None:
    async with chaos_upstream(answer(status)) as server, gateway(server.url, "first") as client:
        reply = await ask(client)
        fallbacks = await counted(client, "gateway_upstream_fallbacks_total")

    assert who(reply) == (200, "local", "upstream-failed")
    assert fallbacks == ['{reason="upstream-failed",target="local"} 1.0']


@pytest.mark.parametrize("status", [200, 400, 409, 413, 422])
async def test_in_mode_first_a_verdict_of_the_upstream_is_the_answer(status: int) -> None:
    async with (
        chaos_upstream(answer(status, [JSON], b'{"error":{}}')) as server,
        gateway(server.url, "first") as client,
    ):
        assert who(await ask(client)) == (status, "upstream", "mode")


async def test_in_mode_first_an_upstream_that_is_down_is_not_even_asked_after_a_while() -> None:
    with refusing_upstream() as url:
        async with gateway(url, "first") as client:
            replies = [await ask(client) for _ in range(8)]
            states = await counted(client, "gateway_upstream_state")

    assert {who(reply)[:2] for reply in replies} == {(200, "local")}
    assert who(replies[0])[2] == "upstream-failed"
    assert who(replies[-1])[2] == "breaker-open"
    assert '{state="open",upstream="upstream"} 1.0' in states


async def test_in_mode_first_a_stream_cut_before_its_first_byte_comes_whole_from_here() -> None:
    async with chaos_upstream(cut_after()) as server, gateway(server.url, "first") as client:
        reply = await ask(client, stream=True)

    assert who(reply) == (200, "local", "upstream-failed")
    assert reply.text.endswith("data: [DONE]\n\n")
    assert server.requests


async def test_in_mode_first_a_stream_cut_later_ends_in_an_error_and_nothing_is_added_to_it() -> None:
    async with chaos_upstream(cut_after(b"data: 1\n\n")) as server, gateway(server.url, "first") as client:
        reply = await ask(client, stream=True)

    assert who(reply) == (200, "upstream", "mode")
    events = reply.text.split("\n\n")
    assert events[0] == "data: 1"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "upstream_unreachable"
    assert events[2:] == [""]


async def test_in_mode_only_nothing_is_loaded_and_everything_goes_upstream() -> None:
    async with chaos_upstream(THERE) as server:
        settings = Settings(upstream_url=server.url, upstream_mode="only")
        async with client_of(create_app(settings)) as client:
            await until_ready(client)
            replies = [await ask(client), await client.get("/v1/models"), await client.delete("/v1/files/f")]

    assert settings.model_specs() == ()
    assert {who(reply) for reply in replies} == {(200, "upstream", "mode")}


async def test_in_mode_off_the_upstream_is_not_there() -> None:
    async with chaos_upstream(THERE) as server, gateway(server.url, "off") as client:
        replies = [await ask(client, model="gpt-9"), await client.get("/v1/files")]

    assert [reply.status_code for reply in replies] == [404, 404]
    assert server.requests == []


async def test_a_request_may_be_kept_here_or_sent_away_by_a_key_that_is_allowed_to() -> None:
    keys = {"api_keys": (KEY, OTHER_KEY), "upstream_route_keys": (KEY,)}
    allowed, forbidden = ({"authorization": f"Bearer {key.get_secret_value()}"} for key in (KEY, OTHER_KEY))
    async with chaos_upstream(THERE) as server, gateway(server.url, "fallback", **keys) as client:
        sent = await ask(client, {**allowed, "x-gateway-route": "upstream"})
        refused = await ask(client, {**forbidden, "x-gateway-route": "upstream"})
        kept = await ask(client, {**forbidden, "x-gateway-route": "local"}, model="gpt-9")
        unclear = await ask(client, {**allowed, "x-gateway-route": "there"})

    assert who(sent) == (200, "upstream", "route-header")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "route_not_allowed")
    assert (kept.status_code, kept.json()["error"]["code"]) == (404, "model_not_found")
    assert (unclear.status_code, unclear.json()["error"]["param"]) == (400, "x-gateway-route")
    assert len(server.requests) == 1
    assert not any(name.startswith((b"x-gateway", b"x-local")) for name, _ in server.requests[0].headers)


@pytest.mark.parametrize("mode", list(Mode))
async def test_what_is_marked_local_only_never_leaves(mode: Mode) -> None:
    full = FakeChat(refusal=QueueFull(4, "requests"))
    async with chaos_upstream(THERE) as server, gateway(server.url, mode, full) as client:
        assert (await ask(client, {"x-local-only": "true"})).status_code == 503
        assert (await ask(client, {"x-local-only": "true"}, model="gpt-9")).status_code == 404
        if mode is not Mode.OFF:
            assert (await ask(client, {"x-local-only": "perhaps"})).status_code == 400
        assert server.requests == []


async def test_an_upstream_that_hangs_takes_no_place_from_the_models_here() -> None:
    async with chaos_upstream(hang) as server, gateway(server.url, max_connections=2) as client:
        waiting = [asyncio.create_task(client.post(CHAT, json={**HELLO, "model": "gpt-9"})) for _ in range(6)]
        await until(lambda: len(server.requests) == 2)
        for _ in range(5):
            assert who(await ask(client)) == (200, "local", "served-here")
        for request in waiting:
            request.cancel()
        await asyncio.wait(waiting)


FILE = b"RIFF" + bytes(300_000)


def form(*fields: str) -> Mapping[str, Any]:
    """A multipart body whose parts come in that order."""
    parts = {
        "model": b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-9\r\n',
        "file": b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        + FILE
        + b"\r\n",
    }
    body = b"".join(b"--xyz\r\n" + parts[name] for name in fields) + b"--xyz--\r\n"
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=xyz"}}


MAPPED = """
[[models]]
id = "chat"
task = "chat"
source = "dir:/none"

[[upstreams]]
name = "big"
base_url = "{url}"
api_key_env = "BIG_KEY"
models = {{ "whisper-9" = "large-whisper", "gpt-9" = "gpt-9-2026" }}
"""


@asynccontextmanager
async def mapped(url: str, folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    file = folder / "models.toml"
    file.write_text(MAPPED.format(url=url), "utf-8")
    settings = Settings.load({"GATEWAY_MODELS": str(file), "BIG_KEY": "the-big-key"}, env_file=None)
    assert "the-big-key" in settings.secrets()
    async with client_of(create_app(settings, handlers=[FakeChat(), FakeTranscription()])) as client:
        await until_ready(client)
        yield client


@pytest.mark.parametrize("order", [("model", "file"), ("file", "model")], ids="-".join)
async def test_an_upload_is_passed_on_byte_for_byte_but_for_the_name_of_its_model(
    order: tuple[str, str], tmp_path: Path
) -> None:
    sent = form(*order)
    async with chaos_upstream(THERE) as server, mapped(server.url, tmp_path) as client:
        reply = await client.post("/v1/audio/transcriptions", **sent)

    assert who(reply) == (200, "big", "unknown-here")
    assert server.requests[0].body == sent["content"].replace(b"whisper-9", b"large-whisper")
    assert dict(server.requests[0].headers)[b"authorization"] == b"Bearer the-big-key"


async def test_a_mapped_name_is_the_only_thing_that_changes_in_a_body(tmp_path: Path) -> None:
    body = b'{ "messages" : [{"role":"user","content":"gpt-9"}],\n"model" : "gpt-9", "temperature":1.0 }'
    async with chaos_upstream(THERE) as server, mapped(server.url, tmp_path) as client:
        await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        unknown = await ask(client, model="gpt-10")

    assert server.requests[0].body == body.replace(b'"model" : "gpt-9"', b'"model" : "gpt-9-2026"')
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_upload_that_is_refused_here_goes_upstream_whole() -> None:
    full = FakeTranscription(error=QueueFull(1, "requests"))
    sent = form("file", "model")
    sent = {**sent, "content": sent["content"].replace(b"whisper-9", b"tiny-whisper")}
    async with chaos_upstream(THERE) as server, gateway(server.url, "overflow", full) as client:
        reply = await client.post("/v1/audio/transcriptions", **sent)

    assert who(reply) == (200, "upstream", "queue-full")
    assert server.requests[0].body == sent["content"]
    assert full.files == [FILE]


async def test_what_upstreams_do_can_be_watched() -> None:
    async with chaos_upstream(event_stream(b"data: [DONE]\n\n")) as server, gateway(server.url) as client:
        await ask(client, model="gpt-9")
        await _cut(server, client)
        requests = await counted(client, "gateway_upstream_requests_total")
        failures = await counted(client, "gateway_upstream_failures_total")
        latency = await counted(client, "gateway_upstream_first_byte_seconds_count")
        states = await counted(client, "gateway_upstream_state")

    assert requests == ['{status="200",upstream="upstream"} 2.0']
    assert failures == ['{kind="unreachable",upstream="upstream"} 1.0']
    assert latency == ['{upstream="upstream"} 2.0']
    assert '{state="closed",upstream="upstream"} 1.0' in states


async def _cut(server: ChaosUpstream, client: httpx2.AsyncClient) -> None:
    server.mode = cut_after(b"data: 1\n\n")
    await ask(client, model="gpt-9")


@pytest.mark.parametrize("mode", ["fallback", "first", "only"])
async def test_models_of_upstreams_are_listed_and_described_under_the_names_they_have_here(
    mode: str, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    async with chaos_upstream(THERE) as server:
        file.write_text(f'''
[[upstreams]]
name = "gpu"
base_url = "{server.url}"
models = {{ "large" = "gpt-5" }}
''')
        options = {"models": str(file), "upstream_mode": mode}
        async with client_of(create_app(Settings(**options), handlers=[FakeChat()])) as client:  # type: ignore[arg-type]
            await until_ready(client)
            listed = {entry["id"]: entry["owned_by"] for entry in (await client.get("/v1/models")).json()["data"]}
            [one, none] = [await client.get(f"/v1/models/{name}") for name in ("large", "nowhere")]

    assert listed == {"org/chat": "local", "large": "gpu"}
    assert (one.json()["id"], one.json()["owned_by"]) == ("large", "gpu")
    assert none.status_code == 404
    assert server.requests == []


async def test_in_mode_first_the_models_here_answer_within_50_ms_when_the_upstream_refuses() -> None:
    random.seed(0)  # 0.84 comes next: of the wait before the second attempt, nearly all
    with refusing_upstream() as url:
        async with gateway(url, "first") as client:
            request = asyncio.create_task(client.post(CHAT, json=HELLO))
            while not await counted(client, "gateway_upstream_retries_total{"):
                pass
            await advance(0.05)
            await until(request.done)

    assert who(request.result()) == (200, "local", "upstream-failed")
