"""GET /metrics: what it counts, who may read it, and that nothing a client sends gets into it."""

import asyncio
import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from batching.job import Job
from batching.stats import GenerationStats, Histogram, ProcessStats, Restart
from gateway.app import create_app
from gateway.middleware.access_log import AccessLog
from gateway.routes import metrics_routes, routes, upstream_routes
from gateway.settings import Settings
from gateway.telemetry.background import BackgroundHandler
from gateway.telemetry.metrics import FAMILIES, Metrics
from gateway.telemetry.requests import RequestMetrics
from handlers.registry import Registry
from handlers.stats import CacheStats, ModelStats
from tests.batching.fakes import IDLE, FakeEngine, Latch, Script, generator_of, in_step, read, serving, thorough
from tests.clock import settle
from tests.gateway.fakes import FakeChat, FakeEmbeddings, FakeTranscription
from tests.gateway.raw_client import RawClient
from tests.gateway.test_app import HELLO, client_of, started, until_ready
from tests.gateway.test_logging import StuckStream
from tests.proxy.chaos_upstream import answer, chaos_upstream

pytestmark = pytest.mark.anyio

KEY = SecretStr("sk-canary")
BEARER = {"authorization": "Bearer sk-canary"}
CHAT = "/v1/chat/completions"
Series = tuple[str, frozenset[tuple[str, str]]]


def parsed(text: str) -> dict[Series, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: httpx2.AsyncClient, **headers: str) -> dict[Series, float]:
    reply = await client.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    return parsed(reply.text)


def series(name: str, **labels: str) -> Series:
    return (f"gateway_{name}", frozenset(labels.items()))


class Watched(FakeChat):
    """Has done what it is told it has."""

    def __init__(self, done: ModelStats) -> None:
        super().__init__()
        self.done = done

    def stats(self) -> ModelStats:
        return self.done


# What is counted


async def test_requests_are_counted_by_method_route_and_status() -> None:
    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat(), FakeEmbeddings()])) as client:
        await until_ready(client)
        for _ in range(2):
            assert (await client.post(CHAT, json=HELLO)).status_code == 200
        await client.post(CHAT, json={**HELLO, "model": "unknown"})
        await client.get("/v1/models/org/chat")
        await client.put(CHAT)
        await client.get("/no/such/url")
        now = await scrape(client)
    counted = {
        (labels["method"], labels["route"], labels["status"]): value
        for (name, pairs), value in now.items()
        if name == "gateway_http_requests_total" and (labels := dict(pairs))["route"] not in ("/readyz", "/metrics")
    }
    assert counted == {
        ("POST", CHAT, "200"): 2,
        ("POST", CHAT, "404"): 1,
        ("GET", "/v1/models/{model}", "200"): 1,
        ("other", CHAT, "405"): 1,
        ("other", "other", "404"): 1,
    }
    assert now[series("http_requests_in_flight")] == 1  # the scrape itself


async def test_durations_fall_into_buckets() -> None:
    metrics = RequestMetrics(routes)
    times = iter([10.0, 10.03, 20.0, 24.0])

    async def ok(scope: Scope, receive: Receive, send: Send) -> None:
        assert metrics.in_flight == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    layer = AccessLog(ok, metrics, clock=lambda: next(times))
    for _ in range(2):
        await RawClient(CHAT).call(layer)
    ((labels, duration),) = metrics.durations()
    assert labels == ("POST", CHAT, "200")
    assert {bound: count for bound, count in zip(duration.bounds, duration.counts, strict=False) if count} == {
        0.05: 1,
        5.0: 1,
    }
    assert duration.sum == pytest.approx(4.03)
    assert metrics.in_flight == 0


async def test_a_client_that_leaves_and_a_crash_are_counted_and_no_longer_in_flight() -> None:
    metrics = RequestMetrics(routes)

    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with pytest.raises(ZeroDivisionError):
        await RawClient(CHAT).call(AccessLog(crash, metrics))
    client = RawClient(CHAT)
    leaving = asyncio.ensure_future(client.call(AccessLog(wait, metrics)))
    await settle()
    assert metrics.in_flight == 1
    client.leave()
    await leaving
    assert sorted(labels[2] for labels, _ in metrics.durations()) == ["499", "500"]
    assert metrics.in_flight == 0


async def test_vectors_that_are_not_finite_count_as_a_failure() -> None:
    app = create_app(Settings(models="none"), handlers=[FakeEmbeddings(value=math.nan)])
    async with client_of(app) as client:
        await until_ready(client)
        await client.post("/v1/embeddings", json={"model": "mini-embed", "input": "x"})
        now = await scrape(client)
    assert now[series("http_requests_total", method="POST", route="/v1/embeddings", status="500")] == 1


async def test_what_a_batch_loop_does_is_told_as_it_is_at_that_moment() -> None:
    engine = FakeEngine(capacity=3, latch=Latch(closed=True))
    batcher = generator_of(engine, max_batch_cost=4)
    chat = Watched(ModelStats(IDLE))
    async with client_of(create_app(Settings(models="none"), handlers=[chat])) as client:
        await until_ready(client)
        async with serving(batcher, engine.latch):
            readers = [read(batcher, Script(name, 3), cost=2) for name in "abc"]
            await in_step(engine, 1)
            chat.done = ModelStats(batcher.stats(), prompt_tokens=40, cached_tokens=16)
            before = await scrape(client)
            engine.latch.open()
            for reader in readers:
                await reader.result()
            batcher.open(Job(Script("d"))).close()
            chat.done = ModelStats(batcher.stats())
            after = await scrape(client)
    model = {"model": "org/chat"}
    assert {name: before[series(name, **model)] for name in ("queue_jobs", "queue_cost", "running_jobs")} == {
        "queue_jobs": 1,
        "queue_cost": 2,
        "running_jobs": 2,
    }
    assert before[series("prompt_tokens_total", **model)] == 40
    assert before[series("cached_prompt_tokens_total", **model)] == 16
    assert (before[series("batch_cost_limit", **model)], after[series("batch_cost_limit", **model)]) == (4, 2)
    assert after[series("out_of_memory_total", **model)] == 1
    assert after[series("preemptions_total", **model)] == 2
    assert after[series("completion_tokens_total", **model)] == 9
    assert after[series("jobs_total", outcome="completed", **model)] == 3
    assert after[series("jobs_total", outcome="cancelled", **model)] == 1
    assert after[series("time_to_first_token_seconds_count", **model)] == 3
    assert after[series("inter_token_latency_seconds_bucket", le="+Inf", **model)] == 6


async def test_every_documented_metric_can_be_had_and_no_other() -> None:
    empty = Histogram((1.0,)).stats()
    done = ModelStats(
        replace(IDLE, generation=GenerationStats(7, 1, empty, empty)),
        *(3, 2, 1.5, CacheStats(5, 6, 7, 800)),
        processes={"engine": ProcessStats(True, {Restart.CRASHED: 4, Restart.KILLED: 9})},
    )
    async with client_of(create_app(Settings(models="none"), handlers=[Watched(done)])) as client:
        await until_ready(client)
        text = (await client.get("/metrics")).text
    told = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in text_string_to_metric_families(text)
        if family.name.startswith("gateway_")
    }
    always = [family for family in FAMILIES if not family.name.startswith("gateway_upstream_")]
    assert told == {family.name: (family.kind, family.help) for family in always}
    now = parsed(text)
    assert [now[series(f"embeddings_cache_{name}", model="org/chat")] for name in ("hits_total", "bytes")] == [5, 800]
    assert now[series("audio_seconds_total", model="org/chat")] == 1.5
    restarts = {"model": "org/chat", "process": "engine"}
    assert now[series("process_restarts_total", reason="crashed", **restarts)] == 4
    assert now[series("process_restarts_total", reason="killed", **restarts)] == 9


async def test_while_models_load_it_says_so_and_asks_them_nothing() -> None:
    class Loading(FakeTranscription):
        async def load(self) -> None:
            await anyio.sleep_forever()

        def stats(self) -> ModelStats:
            raise AssertionError("it has no batches yet")

    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat(), Loading()])) as client:
        while not (now := await scrape(client))[series("model_ready", model="org/chat", task="chat")]:
            pass
    assert now[series("model_ready", model="tiny-whisper", task="transcription")] == 0
    assert series("queue_jobs", model="org/chat") in now
    assert series("queue_jobs", model="tiny-whisper") not in now


async def test_lost_log_records_are_counted() -> None:
    handler = BackgroundHandler(stream := StuckStream(), capacity=1)
    logging.getLogger().addHandler(handler)
    try:
        handler.emit(logging.makeLogRecord({}))
        stream.reached.wait()
        for _ in range(3):
            handler.emit(logging.makeLogRecord({}))
        told = {reading.family.name: reading.samples for reading in Metrics(Registry([]), []).read()}
    finally:
        logging.getLogger().removeHandler(handler)
        stream.gate.set()
        handler.close()
    assert told["gateway_log_records_dropped_total"] == [((), 2)]


async def test_an_upstream_alone_is_watched_too_without_torch_and_numpy() -> None:
    program = """
import asyncio, sys
from gateway.app import create_app
from gateway.settings import Settings
app = create_app(Settings(upstream_url="http://127.0.0.1:9/v1", upstream_mode="only"))
async def main():
    async with app.router.lifespan_context(app) as state:
        text, _ = await state["metrics"].text("")
        print(b"gateway_http_requests_in_flight 0.0" in text, b"process_resident_memory_bytes" in text)
asyncio.run(main())
print({"numpy", "torch", "transformers"} & sys.modules.keys())
"""
    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.stdout.splitlines()[0].split()[0], result.stdout.splitlines()[-1]) == ("True", "set()")


async def test_forwarded_requests_are_counted_under_the_templates_of_their_routes() -> None:
    async with chaos_upstream(answer(200, ((b"content-type", b"application/json"),), b"{}")) as upstream:
        async with client_of(create_app(Settings(models="none", upstream_url=upstream.url))) as client:
            await client.post(CHAT, json=HELLO)
            await client.delete("/v1/files/file-123")
            now = await scrape(client)
    assert now[series("http_requests_total", method="POST", route=CHAT, status="200")] == 1
    assert now[series("http_requests_total", method="DELETE", route="/v1/{path}", status="200")] == 1


# Labels


anything = st.text(max_size=20)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATHS = st.one_of(
    anything.map(lambda text: f"/{text}"),
    anything.map(lambda text: f"/v1/{text}"),
    anything.map(lambda text: f"/v1/models/{text}"),
    st.sampled_from([route.path for route in routes]),
)


@thorough
@given(
    requests=st.lists(
        st.tuples(st.one_of(st.sampled_from(METHODS), anything), PATHS, st.integers(-1, 1000)), max_size=30
    )
)
def test_no_sequence_of_requests_makes_a_label_of_its_own(requests: list[tuple[str, str, int]]) -> None:
    known = [*routes, *metrics_routes, *upstream_routes]
    metrics = RequestMetrics(known)
    for method, path, status in requests:
        metrics.begin()
        metrics.end(method, path, status, 0.1)
    templates = {"other", *(route.path_format for route in known)}
    for (method, route, label), _ in metrics.durations():
        assert method in {"other", *METHODS} and route in templates
        assert label == "other" or 100 <= int(label) < 600
    assert metrics.in_flight == 0
    assert sum(sum(duration.counts) for _, duration in metrics.durations()) == len(requests)


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("POST", CHAT, ("POST", CHAT)),
        ("GET", "/v1/models", ("GET", "/v1/models")),
        ("GET", "/v1/models/a/b", ("GET", "/v1/models/{model}")),
        ("DELETE", "/v1/models/a", ("DELETE", "/v1/{path}")),
        ("PUT", CHAT, ("PUT", "/v1/{path}")),
        ("BREW", CHAT, ("other", CHAT)),
        ("GET", "/v1/chat/completions/", ("GET", "/v1/{path}")),
        ("GET", "/metrics", ("GET", "/metrics")),
        ("GET", "/v2", ("other", "other")),
    ],
)
def test_a_request_is_counted_under_the_route_that_the_router_takes(
    method: str, path: str, labels: tuple[str, str]
) -> None:
    metrics = RequestMetrics([*routes, *metrics_routes, *upstream_routes])
    metrics.begin()
    metrics.end(method, path, 200, 0.1)
    assert [label[:2] for label, _ in metrics.durations()] == [labels]


async def test_nothing_that_clients_send_is_told_and_the_number_of_series_does_not_grow_with_it() -> None:
    settings = Settings(models="none", api_keys=(KEY,))
    async with started(create_app(settings, handlers=[FakeChat()])) as app:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as client:
            await until_ready(client)
            await scrape(client)  # a route of its own, from now on
            sizes = []
            for round in range(2):
                for i in range(20):
                    canary = f"canary-{round}-{i}"
                    headers = {"user-agent": canary, "x-request-id": canary, "openai-organization": canary}
                    body = {"model": canary, "messages": [{"role": "user", "content": canary}], "user": canary}
                    await client.post(CHAT, json=body, headers=headers)
                    await client.post(CHAT, json={**body, "model": "gpt-4o"}, headers=headers)
                    await client.get(f"/{canary}?{canary}", headers=headers)
                    await client.get(f"/v1/models/{canary}", headers={"authorization": f"Bearer {canary}"})
                    await client.request(f"CANARY-{i}", "/v1/models", headers=headers)
                text = (await client.get("/metrics")).text
                sizes.append(len(parsed(text)))
    assert sizes[0] == sizes[1]
    assert "canary" not in text.lower() and "gpt-4o" not in text


# Who may read it, and in which format


@pytest.mark.parametrize(
    ("settings", "without_key", "with_key"),
    [
        ({"api_keys": (KEY,)}, 401, 200),
        ({"api_keys": (KEY,), "metrics": "open"}, 200, 200),
        ({"api_keys": (KEY,), "metrics": "off"}, 401, 404),
        ({}, 200, 200),
        ({"metrics": "off"}, 404, 404),
        ({"metrics": "off", "upstream_url": "http://127.0.0.1:9/v1"}, 404, 404),
    ],
)
async def test_it_wants_a_key_where_there_are_keys_unless_it_is_open(
    settings: Mapping[str, Any], without_key: int, with_key: int
) -> None:
    async with client_of(create_app(Settings(models="none", **settings), handlers=[FakeChat()])) as client:
        assert (await client.get("/metrics")).status_code == without_key
        assert (await client.get("/metrics", headers=BEARER)).status_code == with_key
        if settings.get("metrics") == "open":
            assert (await client.get("/v1/models")).status_code == 401


async def test_scrapes_are_neither_limited_nor_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with client_of(create_app(Settings(models="none", rate_limit="1/hour"), handlers=[FakeChat()])) as client:
        for _ in range(3):
            await scrape(client)
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 429
    assert "/metrics" not in "".join(record.getMessage() for record in caplog.records if "gateway" in record.name)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=x;escaping=y;q=0.6,text/plain;q=0.3",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_it_writes_openmetrics_for_who_accepts_it(accept: str, content_type: str) -> None:
    async with client_of(create_app(Settings(models="none"), handlers=[FakeChat()])) as client:
        await until_ready(client)
        reply = await client.get("/metrics", headers={"accept": accept})
    assert reply.headers["content-type"] == content_type
    parse = parse_openmetrics if "openmetrics" in content_type else text_string_to_metric_families
    assert "gateway_http_requests_in_flight" in {family.name for family in parse(reply.text)}
