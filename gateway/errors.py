"""The one table from exception to OpenAI error. No other module knows which status an exception becomes.

Every error body is `{"error": {"message", "type", "param", "code"}}`, as JSON or, once a stream has begun, as its last
`data:` event. docs/errors.md lists them all with the way out of each.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, ProcessBroken, QueueFull, ShuttingDown
from gateway.telemetry.context import request_id_var
from handlers.errors import InvalidRequest, ModelLoading, ModelNotFound, StorageFull, TooLarge, UnsupportedMedia
from proxy.errors import NoRoom, NotServed, UnsafePath, UpstreamError, UpstreamSpared, UpstreamTimeout

logger = logging.getLogger("gateway.errors")

_SHUTDOWN_RETRY_AFTER = 5.0  # seconds; about what a replacement process needs to start listening
_STORAGE_RETRY_AFTER = 30.0  # seconds; uploads are deleted when their requests end
_MAX_RETRY_AFTER = 120.0  # the OpenAI SDK does not retry at all when it is told to wait longer
_MAX_QUOTED = 200  # characters of a caller's own text in a message


class Unauthorized(Exception):
    """No API key, or one that is not ours. The text never holds the key."""


class BodyTooLarge(Exception):
    """`limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"body over {limit} bytes")
        self.limit = limit


class BodyTimeout(Exception):
    """The request body came too slowly, or stopped coming."""


class UnsupportedContentType(Exception):
    """The body is of a kind, or in an encoding, that this URL does not take. The text goes to the caller."""


class RateLimited(Exception):
    """This caller's own limit, as in `60 per 1 minute`, is used up for `retry_after` more seconds."""

    def __init__(self, limit: str, retry_after: float) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after = retry_after


class RouteForbidden(Exception):
    """The caller's key may not choose that its request goes upstream."""


class UnknownUrl(Exception):
    """No route has this path."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{method} {path}")


class MethodNotAllowed(Exception):
    """The route with this path takes only the methods in `allowed`, a list separated by commas."""

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method} {path}")
        self.allowed = allowed


class ClientDisconnected(ClientDisconnect):
    """The client left before its answer was out. Nobody is there to read a reply; the access log says 499."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """What the caller is told. `headers` go out with the status; a stream that has begun cannot send them."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        error = {
            "message": _encodable(self.message),
            "type": self.type,
            "param": None if self.param is None else _encodable(self.param),
            "code": self.code,
        }
        return orjson.dumps({"error": error})


def to_api_error(exc: BaseException) -> ApiError:
    """The entry of the nearest class in the exception's ancestry. What has none is our fault; its text stays here."""
    for cls in type(exc).__mro__:
        if describe := _TABLE.get(cls):
            return describe(exc)
    return _INTERNAL


def error_response(exc: Exception) -> Response:
    """The reply that tells the caller. A fault of ours is logged here, once, with its traceback."""
    error = _account_for(exc)
    return Response(error.body(), error.status, error.headers, media_type="application/json")


def error_event(exc: Exception) -> bytes:
    """The same object, and the same log entry, as the last event of a stream that has begun."""
    return b"data: " + _account_for(exc).body() + b"\n\n"


def _account_for(exc: Exception) -> ApiError:
    error = to_api_error(exc)
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log_failure(exc)
    return error


def log_failure(exc: BaseException) -> None:
    """One traceback, under the request's id, for whoever runs the server."""
    logger.error("request %s failed", request_id_var.get(), exc_info=exc)


def _invalid(status: int) -> Callable[[InvalidRequest], ApiError]:
    return lambda exc: ApiError(status, "invalid_request_error", exc.message, exc.code, exc.param)


def _model_not_found(exc: ModelNotFound | NotServed) -> ApiError:
    message = (
        f"The model `{quote(exc.model)}` does not exist or you do not have access to it. "
        "GET /v1/models lists the models served here."
    )
    return ApiError(404, "invalid_request_error", message, "model_not_found", "model")


def _model_loading(exc: ModelLoading) -> ApiError:
    return _unavailable(f"The model `{quote(exc.model)}` is still loading.", "model_loading", exc.retry_after)


def _queue_full(exc: QueueFull) -> ApiError:
    return _unavailable(f"The queue is full ({exc.limit} {exc.unit}).", "server_is_overloaded", exc.retry_after)


def _shutting_down(exc: ShuttingDown) -> ApiError:
    message = "The server is shutting down and takes no new requests."
    return _unavailable(message, "shutting_down", _SHUTDOWN_RETRY_AFTER, connection="close")


def _storage_full(exc: StorageFull | NoRoom) -> ApiError:
    message = "The server has no room on disk for the upload; its operator has to make some."
    return _unavailable(message, "storage_full", _STORAGE_RETRY_AFTER)


def _process_broken(exc: ProcessBroken) -> ApiError:
    return _unavailable("The model's process keeps failing.", "model_unavailable", _MAX_RETRY_AFTER)


def _unavailable(message: str, code: str, retry_after: float, **headers: str) -> ApiError:
    seconds = _whole_seconds(min(retry_after, _MAX_RETRY_AFTER))
    headers["retry-after"] = seconds
    return ApiError(503, "service_unavailable_error", f"{message} Retry in {seconds} s.", code, headers=headers)


def _out_of_memory(exc: OutOfMemory) -> ApiError:
    message = (
        "The request is too large for the memory of the device, even on its own. "
        "Send a shorter input or ask for fewer tokens."
    )
    # The same request would fail again, so the client must not repeat it by itself.
    return ApiError(503, "service_unavailable_error", message, "out_of_memory", headers={"x-should-retry": "false"})


def _deadline_exceeded(exc: DeadlineExceeded) -> ApiError:
    message = "The request was not finished before its deadline. Ask for less at once, or allow it more time."
    return ApiError(504, "timeout", message, "deadline_exceeded")


def _unauthorized(exc: Unauthorized) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, "invalid_request_error", str(exc), "invalid_api_key", headers=headers)


def _body_too_large(exc: BodyTooLarge) -> ApiError:
    message = f"The request body is larger than the {exc.limit} bytes that this URL takes. Send less at once."
    return ApiError(413, "invalid_request_error", message, "request_too_large")


def _body_timeout(exc: BodyTimeout) -> ApiError:
    message = "The request body did not arrive in time. Send it faster, or send less at once."
    return ApiError(408, "timeout", message, "request_timeout")


def _unsupported_content_type(exc: UnsupportedContentType) -> ApiError:
    return ApiError(415, "invalid_request_error", str(exc), "unsupported_content_type")


def _rate_limited(exc: RateLimited) -> ApiError:
    seconds = _whole_seconds(exc.retry_after)
    message = f"Rate limit reached: {exc.limit}. Retry in {seconds} s."
    return ApiError(429, "rate_limit_error", message, "rate_limit_exceeded", headers={"retry-after": seconds})


def _upstream(status: int, code: str, exc: UpstreamError) -> ApiError:
    return ApiError(status, "upstream_error", f"The request was passed on, but {exc}. Retry later.", code)


def _upstream_spared(exc: UpstreamSpared) -> ApiError:
    seconds = _whole_seconds(exc.retry_after)
    message = f"The request was not passed on: {exc}. Retry in {seconds} s."
    return ApiError(502, "upstream_error", message, "upstream_unreachable", headers={"retry-after": seconds})


def _route_forbidden(exc: RouteForbidden) -> ApiError:
    message = "This API key may not choose where a request goes. Send it without the header x-gateway-route: upstream."
    return ApiError(403, "permission_error", message, "route_not_allowed", "x-gateway-route")


def _unknown_url(exc: UnknownUrl) -> ApiError:
    message = (
        f"Unknown URL: {quote(str(exc))}. The base URL of an OpenAI client must end in /v1; "
        "GET /v1/models lists the models served here."
    )
    return ApiError(404, "invalid_request_error", message, "unknown_url")


def _method_not_allowed(exc: MethodNotAllowed) -> ApiError:
    message = f"Method not allowed: {quote(str(exc))}. Use {exc.allowed}."
    return ApiError(405, "invalid_request_error", message, "method_not_allowed", headers={"allow": exc.allowed})


_TYPE_OF_STATUS = {403: "permission_error", 408: "timeout", 409: "conflict", 429: "rate_limit_error"}


def _http_exception(exc: HTTPException) -> ApiError:
    if exc.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _INTERNAL
    kind = _TYPE_OF_STATUS.get(exc.status_code, "invalid_request_error")
    return ApiError(exc.status_code, kind, exc.detail, headers=exc.headers or {})


_INTERNAL = ApiError(500, "server_error", "Internal error. Please retry; the server's log tells its operator more.")
_ENGINE_FAILED = ApiError(
    500,
    "server_error",
    "The model failed on this request. The server's log tells its operator why.",
    "engine_failed",
    # It failed alone in its batch: the request itself is the likely cause, and each retry costs another batch.
    headers={"x-should-retry": "false"},
)

_TABLE: Mapping[type, Callable[[Any], ApiError]] = {
    InvalidRequest: _invalid(400),
    TooLarge: _invalid(413),
    UnsupportedMedia: _invalid(415),
    ModelNotFound: _model_not_found,
    ModelLoading: _model_loading,
    QueueFull: _queue_full,
    ShuttingDown: _shutting_down,
    ProcessBroken: _process_broken,
    DeadlineExceeded: _deadline_exceeded,
    OutOfMemory: _out_of_memory,
    EngineFailed: lambda exc: _ENGINE_FAILED,
    Unauthorized: _unauthorized,
    BodyTooLarge: _body_too_large,
    BodyTimeout: _body_timeout,
    UnsupportedContentType: _unsupported_content_type,
    StorageFull: _storage_full,
    NoRoom: _storage_full,
    RateLimited: _rate_limited,
    UnknownUrl: _unknown_url,
    MethodNotAllowed: _method_not_allowed,
    UnsafePath: lambda exc: ApiError(400, "invalid_request_error", f"Invalid URL: {exc}.", "invalid_url"),
    RouteForbidden: _route_forbidden,
    NotServed: _model_not_found,
    UpstreamSpared: _upstream_spared,
    UpstreamError: lambda exc: _upstream(502, "upstream_unreachable", exc),
    UpstreamTimeout: lambda exc: _upstream(504, "upstream_timeout", exc),
    HTTPException: _http_exception,
    ClientDisconnect: lambda exc: ApiError(499, "client_disconnected", "The client left."),
}


async def _answer(request: Request, exc: Exception) -> Response:
    return error_response(exc)


async def _answer_http(request: Request, exc: Exception) -> Response:
    return error_response(_from_router(request, exc) if isinstance(exc, HTTPException) else exc)


def _from_router(request: Request, exc: HTTPException) -> Exception:
    """Starlette's router says only "Not Found" and "Method Not Allowed"; this says of what."""
    method, path = request.scope["method"], request.scope["path"]
    match exc.status_code, exc.detail:
        case HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.phrase:
            return UnknownUrl(method, path)
        case HTTPStatus.METHOD_NOT_ALLOWED, _:
            # Starlette joins a set, in an order that changes from one process to the next.
            allowed = sorted((exc.headers or {}).get("Allow", "").split(", "))
            return MethodNotAllowed(method, path, ", ".join(allowed))
    return exc


# What Starlette's own layer answers. Anything else, and a client that left, goes up to gateway/middleware/.
exception_handlers: Mapping[Any, ExceptionHandler] = {
    **{cls: _answer for cls in _TABLE if cls is not ClientDisconnect},
    HTTPException: _answer_http,
}


def quote(text: str) -> str:
    """A caller's own words, cut to a length that a message can carry."""
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def _encodable(text: str) -> str:
    # A lone surrogate, legal in a Python string and in JSON escapes, has no UTF-8 form.
    return text.encode("utf-8", "replace").decode()


def _whole_seconds(seconds: float) -> str:
    return str(math.ceil(max(1.0, seconds)))
