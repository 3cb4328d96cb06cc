"""What every request gets: an id, a log line, an answer whatever happens; and the stack of all layers."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from batching.errors import EngineFailed
from gateway.disconnect import until_disconnect
from gateway.errors import ClientDisconnected, exception_handlers
from gateway.middleware import stack
from gateway.middleware.access_log import AccessLog
from gateway.middleware.error_boundary import ErrorBoundary
from gateway.middleware.request_id import RequestId
from gateway.settings import Settings
from gateway.telemetry.context import request_id_var
from tests.clock import settle
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ok")(scope, receive, send)


async def crash(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("the secret")


async def crash_half_way(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError("the secret")


async def wait(scope: Scope, receive: Receive, send: Send) -> None:
    request: Request = Request(scope, receive)
    await request.body()
    await until_disconnect(request, asyncio.Event().wait())


# --- request id


async def test_every_request_gets_an_id_of_its_own() -> None:
    first, second = await RawClient().call(RequestId(ok)), await RawClient().call(RequestId(ok))
    assert first.headers["x-request-id"].startswith("req_")
    assert len(first.headers["x-request-id"]) == len("req_") + 32
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a", "Trace-1.2_3", "x" * 128])
async def test_a_clients_own_id_is_taken_over(given: str) -> None:
    client = await RawClient(headers=[("X-Request-Id", given)]).call(RequestId(ok))
    assert client.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\r\nset-cookie: b", "ü", 'a"b', "a\n"])
async def test_an_id_that_could_do_harm_in_a_log_or_header_is_replaced(given: str) -> None:
    client = await RawClient(headers=[("X-Request-Id", given)]).call(RequestId(ok))
    assert client.headers["x-request-id"].startswith("req_")


async def test_the_id_is_known_to_the_route_and_to_what_it_logs_and_to_nobody_afterwards() -> None:
    seen = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["gateway.request_id"], request_id_var.get()))
        await ok(scope, receive, send)

    await RawClient(headers=[("X-Request-Id", "mine")]).call(RequestId(look))
    assert seen == [("mine", "mine")]
    assert request_id_var.get() == "-"


async def test_the_id_of_an_upstreams_reply_gives_way_to_ours() -> None:
    async def relay(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("ok", headers={"X-Request-Id": "theirs"})(scope, receive, send)

    client = await RawClient(headers=[("X-Request-Id", "ours")]).call(RequestId(relay))
    assert client.headers["x-request-id"] == "ours"


async def test_the_reply_says_how_long_it_took() -> None:
    client = await RawClient().call(RequestId(ok))
    assert client.headers["openai-processing-ms"].isdigit()


# --- access log


def fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return {name: getattr(record, name) for name in ("method", "path", "status", "bytes")}


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "gateway.access")
    return caplog


async def test_a_request_is_one_line_without_its_query(access: pytest.LogCaptureFixture) -> None:
    await RawClient("/v1/embeddings").call(AccessLog(ok))
    (record,) = access.records
    assert record.levelno == logging.INFO
    assert fields(record) == {"method": "POST", "path": "/v1/embeddings", "status": 200, "bytes": 2}
    assert record.getMessage().startswith("POST /v1/embeddings 200 ")
    assert "secret" not in access.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_do_not_fill_the_log(access: pytest.LogCaptureFixture, path: str) -> None:
    await RawClient(path, method="GET").call(AccessLog(ok))
    assert [record.levelno for record in access.records] == [logging.DEBUG]


async def test_a_path_cannot_write_log_lines_of_its_own(access: pytest.LogCaptureFixture) -> None:
    await RawClient("/a\nPOST /forged 200").call(AccessLog(ok))
    assert "\n" not in access.records[0].getMessage()


async def test_a_long_path_is_cut(access: pytest.LogCaptureFixture) -> None:
    await RawClient("/" + "x" * 10_000).call(AccessLog(ok))
    assert len(access.records[0].getMessage()) < 300


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_left_is_logged_as_499_and_not_as_a_failure(
    access: pytest.LogCaptureFixture, spec: str
) -> None:
    client = RawClient(spec=spec)
    task = asyncio.ensure_future(client.call(AccessLog(ErrorBoundary(wait))))
    await settle()
    client.leave()
    await task
    (record,) = access.records
    assert fields(record)["status"] == 499
    assert client.sent == []


async def test_a_client_that_leaves_while_it_is_sent_to_is_logged_as_499(access: pytest.LogCaptureFixture) -> None:
    await RawClient(spec="2.4", leave_after=1).call(AccessLog(ErrorBoundary(ok)))
    assert [fields(record)["status"] for record in access.records] == [499]


async def test_a_reply_that_breaks_off_is_not_logged_as_a_success(access: pytest.LogCaptureFixture) -> None:
    await RawClient().call(AccessLog(ErrorBoundary(crash_half_way)))
    assert [fields(record)["status"] for record in access.records if record.name == "gateway.access"] == [500]


# --- error boundary


async def test_an_unforeseen_exception_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    client = await RawClient().call(ErrorBoundary(crash))
    assert client.status == 500
    assert client.error["type"] == "server_error"
    assert "the secret" not in str(client.sent)
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_reply_that_has_begun_is_left_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    client = await RawClient().call(ErrorBoundary(crash_half_way))
    assert client.chunks == [b"half"]
    assert not client.complete
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_client_that_left_passes_the_boundary_unlogged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClientDisconnected):
        await RawClient(spec="2.4", leave_after=1).call(ErrorBoundary(ok))
    assert caplog.records == []


# --- the stack


def gateway(**overrides: Any) -> Starlette:
    async def hello(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def broken(request: Request) -> Response:
        raise ZeroDivisionError("the secret")

    async def poisoned(request: Request) -> Response:
        raise EngineFailed("the secret")

    routes = [
        Route("/healthz", hello),
        Route("/v1/hello", hello, methods=["POST"]),
        Route("/v1/broken", broken, methods=["POST"]),
        Route("/v1/poisoned", poisoned, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=layers(**overrides), exception_handlers=exception_handlers)


def layers(**overrides: Any) -> list[Middleware]:
    return stack(Settings(models="none", **overrides))


ALL_LAYERS = {"api_keys": "sk-1", "rate_limit": "3/minute", "cors_origins": "https://app.example.com"}
KEY = ("authorization", "Bearer sk-1")


async def test_a_request_goes_through_all_layers() -> None:
    client = await RawClient("/v1/hello", headers=[KEY], body=[b"hi"]).call(gateway(**ALL_LAYERS))
    assert (client.status, client.chunks) == (200, [b"hi"])
    assert client.headers["x-ratelimit-remaining-requests"] == "2"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/hello", [], 401),
        ("/v1/hello", [KEY, ("content-length", "99999999")], 413),
        ("/v1/hello", [KEY, ("content-encoding", "gzip")], 415),
        ("/v1/hello", [KEY, ("x-request-timeout", "soon")], 400),
        ("/v1/nowhere", [KEY], 404),
        ("/healthz", [], 405),
        ("/v1/broken", [KEY], 500),
        ("/v1/poisoned", [KEY], 500),
    ],
)
async def test_every_refusal_and_failure_has_the_shape_an_id_and_a_log_line(
    caplog: pytest.LogCaptureFixture, path: str, headers: list[tuple[str, str]], status: int
) -> None:
    caplog.set_level(logging.INFO)
    client = await RawClient(path, headers=[*headers, ("x-request-id", "r-1")]).call(gateway(**ALL_LAYERS))
    assert client.status == status
    assert client.error["message"]
    assert client.headers["x-request-id"] == "r-1"
    assert "openai-processing-ms" in client.headers
    lines = [fields(record)["status"] for record in caplog.records if record.name == "gateway.access"]
    assert lines == ([] if path == "/healthz" else [status])
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == (status == 500)
    assert "sk-1" not in caplog.text and "the secret" not in str(client.sent)


async def test_the_rate_limit_answers_in_the_same_shape() -> None:
    app = gateway(**ALL_LAYERS)
    for _ in range(3):
        await RawClient("/v1/hello", headers=[KEY]).call(app)
    client = await RawClient("/v1/hello", headers=[KEY]).call(app)
    assert (client.status, client.error["code"]) == (429, "rate_limit_exceeded")
    assert "x-request-id" in client.headers


async def test_requests_without_a_valid_key_do_not_use_up_anybodys_rate() -> None:
    app = gateway(**ALL_LAYERS)
    for _ in range(5):
        await RawClient("/v1/hello", headers=[("authorization", "Bearer wrong")]).call(app)
    client = await RawClient("/v1/hello", headers=[KEY]).call(app)
    assert client.headers["x-ratelimit-remaining-requests"] == "2"


async def test_a_browsers_preflight_needs_no_key() -> None:
    headers = [
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
    ]
    client = await RawClient("/v1/hello", method="OPTIONS", headers=headers).call(gateway(**ALL_LAYERS))
    assert client.status == 200
    assert client.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "x-request-id" in client.headers


@pytest.mark.parametrize(("path", "headers"), [("/v1/hello", []), ("/v1/broken", [KEY])])
async def test_a_browser_may_read_errors_too(path: str, headers: list[tuple[str, str]]) -> None:
    client = await RawClient(path, headers=[*headers, ("origin", "https://app.example.com")]).call(
        gateway(**ALL_LAYERS)
    )
    assert client.status in (401, 500)
    assert client.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_without_keys_rate_or_origins_those_layers_are_not_there() -> None:
    names = [layer.cls.__name__ for layer in layers()]  # type: ignore[attr-defined]
    assert names == ["RequestId", "AccessLog", "ErrorBoundary", "BodyLimit", "Deadline"]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_uploads_of_audio_may_be_larger_than_other_bodies(path: str) -> None:
    app = gateway(max_body_bytes=10, max_audio_bytes=20)
    upload = [("content-length", str(20 + 1024 * 1024))]
    assert (await RawClient(path, headers=upload).call(app)).status == 404
    assert (await RawClient("/v1/hello", headers=[("content-length", "11")]).call(app)).status == 413


async def test_keys_do_not_show_in_the_description_of_the_stack() -> None:
    assert "sk-1" not in repr(layers(**ALL_LAYERS))


async def test_other_scopes_pass_untouched() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    client = RawClient()
    scope = {"type": "lifespan"}
    wrapped: Any = app
    for cls, args, kwargs in reversed(layers(**ALL_LAYERS)):
        wrapped = cls(wrapped, *args, **kwargs)
    await wrapped(scope, client.receive, client.send)
    assert seen == [({"type": "lifespan"}, client.receive, client.send)]
