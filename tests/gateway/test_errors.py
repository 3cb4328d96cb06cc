"""Every exception the gateway knows, and those it does not, as what the caller is told."""

import logging
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, ProcessBroken, QueueFull, ShuttingDown
from gateway.errors import (
    ApiError,
    BodyTimeout,
    BodyTooLarge,
    ClientDisconnected,
    RateLimited,
    Unauthorized,
    UnsupportedContentType,
    error_event,
    error_response,
    exception_handlers,
    to_api_error,
)
from gateway.telemetry.context import request_id_var
from handlers.errors import InvalidRequest, ModelLoading, ModelNotFound, StorageFull, TooLarge, UnsupportedMedia
from proxy.errors import UnsafePath, UpstreamTimeout, UpstreamUnreachable
from tests.gateway.raw_client import RawClient

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "errors.md"
TABLE = [
    (InvalidRequest("no", "stop", "invalid_value"), 400, "invalid_request_error", "invalid_value", {}),
    (TooLarge("no", "file"), 413, "invalid_request_error", None, {}),
    (UnsupportedMedia("no", "file"), 415, "invalid_request_error", None, {}),
    (ModelNotFound("gpt-9"), 404, "invalid_request_error", "model_not_found", {}),
    (ModelLoading("smol", 2.5), 503, "service_unavailable_error", "model_loading", {"retry-after": "3"}),
    (ProcessBroken(), 503, "service_unavailable_error", "model_unavailable", {"retry-after": "120"}),
    (QueueFull(8), 503, "service_unavailable_error", "server_is_overloaded", {"retry-after": "1"}),
    (
        ShuttingDown(),
        503,
        "service_unavailable_error",
        "shutting_down",
        {"retry-after": "5", "connection": "close"},
    ),
    (OutOfMemory(), 503, "service_unavailable_error", "out_of_memory", {"x-should-retry": "false"}),
    (DeadlineExceeded(), 504, "timeout", "deadline_exceeded", {}),
    (EngineFailed(), 500, "server_error", "engine_failed", {"x-should-retry": "false"}),
    (Unauthorized("no"), 401, "invalid_request_error", "invalid_api_key", {"www-authenticate": "Bearer"}),
    (BodyTooLarge(10), 413, "invalid_request_error", "request_too_large", {}),
    (BodyTimeout(), 408, "timeout", "request_timeout", {}),
    (StorageFull(), 503, "service_unavailable_error", "storage_full", {"retry-after": "30"}),
    (UnsupportedContentType("no"), 415, "invalid_request_error", "unsupported_content_type", {}),
    (
        RateLimited("1 requests per hour", 3599.2),
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        {"retry-after": "3600"},
    ),
    (UnsafePath("no"), 400, "invalid_request_error", "invalid_url", {}),
    (UpstreamUnreachable("no"), 502, "upstream_error", "upstream_unreachable", {}),
    (UpstreamTimeout("no"), 504, "upstream_error", "upstream_timeout", {}),
    (HTTPException(403, "no"), 403, "permission_error", None, {}),
    (HTTPException(500, "a secret"), 500, "server_error", None, {}),
    (ClientDisconnected(), 499, "client_disconnected", None, {}),
    (KeyError("a secret"), 500, "server_error", None, {}),
]


@pytest.mark.parametrize(("exc", "status", "kind", "code", "headers"), TABLE, ids=lambda value: type(value).__name__)
def test_each_exception_has_its_status_type_code_and_headers(
    exc: Exception, status: int, kind: str, code: str | None, headers: Mapping[str, str]
) -> None:
    error = to_api_error(exc)
    assert (error.status, error.type, error.code, dict(error.headers)) == (status, kind, code, headers)


@pytest.mark.parametrize("exc", [row[0] for row in TABLE], ids=lambda exc: type(exc).__name__)
def test_every_message_is_a_sentence(exc: Exception) -> None:
    message = to_api_error(exc).message
    assert message == "no" or (message[0].isupper() and message.endswith("."))


@pytest.mark.parametrize(("exc", "status", "kind", "code", "headers"), TABLE, ids=lambda value: type(value).__name__)
def test_every_error_is_in_the_documentation(
    exc: Exception, status: int, kind: str, code: str | None, headers: Mapping[str, str]
) -> None:
    cells = [f"| {status} |", f" {kind} |", f"`{code}`" if code else "", *headers]
    assert any(all(cell in row for cell in cells) for row in DOCUMENTATION.read_text().splitlines())


def test_a_subclass_is_told_as_its_nearest_known_ancestor() -> None:
    class VoiceUnknown(TooLarge):
        pass

    assert to_api_error(VoiceUnknown("too much")).status == 413


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.2])
def test_retry_after_is_never_below_a_second(seconds: float) -> None:
    assert to_api_error(QueueFull(1, retry_after=seconds)).headers["retry-after"] == "1"


@pytest.mark.parametrize("seconds", [121.0, 1e9, float("inf")])
def test_retry_after_of_a_busy_server_is_never_so_long_that_clients_give_up(seconds: float) -> None:
    assert to_api_error(QueueFull(1, retry_after=seconds)).headers["retry-after"] == "120"


def test_the_body_is_the_openai_envelope_and_nothing_else() -> None:
    response = error_response(InvalidRequest("'top_p' must be at most 1.", "top_p", "invalid_value"))
    assert response.headers["content-type"] == "application/json"
    assert orjson.loads(response.body) == {
        "error": {
            "message": "'top_p' must be at most 1.",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
        }
    }


def test_the_last_event_of_a_stream_holds_the_same_object() -> None:
    exc = QueueFull(3)
    assert error_event(exc) == b"data: " + bytes(error_response(exc).body) + b"\n\n"


def test_text_that_has_no_utf_8_form_is_still_answered() -> None:
    body = ApiError(400, "invalid_request_error", "no \ud800", param="\udfff").body()
    assert orjson.loads(body)["error"]["message"] == "no ?"


def test_a_long_model_name_is_cut() -> None:
    assert len(to_api_error(ModelNotFound("x" * 100_000)).message) < 400


def test_an_unknown_exception_is_logged_once_with_its_traceback_and_request_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = request_id_var.set("req_7")
    try:
        body = bytes(error_response(ValueError("the secret")).body)
    finally:
        request_id_var.reset(token)
    assert b"the secret" not in body
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "request req_7 failed")
    assert record.exc_info is not None and isinstance(record.exc_info[1], ValueError)


def test_the_cause_of_a_failed_engine_is_in_the_log_and_not_in_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    failure = EngineFailed("tensor at 0x7f00")
    failure.__cause__ = RuntimeError("the cause")
    assert b"0x7f00" not in bytes(error_response(failure).body)
    assert "the cause" in caplog.text


def test_what_is_not_our_fault_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for exc in (InvalidRequest("no"), QueueFull(1), DeadlineExceeded(), Unauthorized("no")):
        error_response(exc)
    assert caplog.records == []


async def raises(request: Request) -> Response:
    raise TooLarge("The audio is longer than 3600 s. Split it.", "file")


def application() -> Starlette:
    routes = [Route("/v1/models", raises, methods=["GET"]), Route("/v1/audio/speech", raises, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers=exception_handlers)


@pytest.mark.anyio
async def test_what_a_route_raises_is_answered() -> None:
    client = await RawClient("/v1/audio/speech").call(application())
    assert client.status == 413
    assert client.error["param"] == "file"


@pytest.mark.anyio
async def test_an_unknown_url_is_named_with_the_way_to_known_ones() -> None:
    client = await RawClient("/chat/completions").call(application())
    assert (client.status, client.error["code"]) == (404, "unknown_url")
    assert "POST /chat/completions" in client.error["message"]
    assert "/v1/models" in client.error["message"]


@pytest.mark.anyio
async def test_a_wrong_method_is_told_the_right_ones() -> None:
    client = await RawClient("/v1/models", method="POST").call(application())
    assert (client.status, client.error["code"]) == (405, "method_not_allowed")
    assert client.headers["allow"] == "GET, HEAD"
    assert "Use GET, HEAD." in client.error["message"]


@pytest.mark.anyio
async def test_a_routes_own_404_keeps_its_words() -> None:
    async def missing(request: Request) -> Response:
        raise HTTPException(404, "No such file.")

    app = Starlette(routes=[Route("/", missing)], exception_handlers=exception_handlers)
    client = await RawClient("/", method="GET").call(app)
    assert (client.status, client.error["message"]) == (404, "No such file.")


@pytest.mark.anyio
async def test_a_client_that_left_is_not_answered() -> None:
    async def left(request: Request) -> Response:
        raise ClientDisconnected

    client = RawClient("/", method="GET")
    with pytest.raises(ClientDisconnected):
        await client.call(Starlette(routes=[Route("/", left)], exception_handlers=exception_handlers).router)
    assert client.sent == []
