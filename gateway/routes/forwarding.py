"""What is not served here goes to the upstream, if there is one, byte for byte and before anything of it is judged."""

from collections.abc import Awaitable, Callable
from functools import wraps

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Message

from gateway.errors import error_event
from gateway.routes.multipart import multipart
from gateway.schemas.common import loads
from gateway.state import State
from proxy.relay import RelayResponse
from proxy.target import path_of

Endpoint = Callable[[Request[State]], Awaitable[ASGIApp]]


def or_upstream(endpoint: Endpoint, *, at: str | None = None) -> Endpoint:
    """`endpoint` for the models that are served here, the upstream for all others. Without an upstream, `endpoint`.

    at: the upstream's path for it, if it is not the request's own.
    """

    @wraps(endpoint)
    async def route(request: Request[State]) -> ASGIApp:
        if request.state["upstream"] is None or await _is_served_here(request):
            return await endpoint(request)
        return await forward(request, at)

    return route


async def forward(request: Request[State], at: str | None = None) -> ASGIApp:
    """The upstream's reply to this request, sent to the same path or to `at`."""
    upstream = request.state["upstream"]
    assert upstream is not None, "routes lead here only with an upstream"
    exchange = upstream.send(request.method, at or path_of(request.scope), request.headers.raw, await request.body())
    return RelayResponse(
        exchange,
        on_error=error_event,
        send_timeout=request.state["settings"].send_timeout,
        deadline=request.scope["gateway.deadline"],
    )


async def _is_served_here(request: Request[State]) -> bool:
    """A request that names no model, or not in a way that can be read, is answered here: with what is wrong with it."""
    registry = request.state["registry"]
    if not registry.models:
        return False
    model = request.path_params.get("model") or await _model_in_body(request)
    return not isinstance(model, str) or model in registry


async def _model_in_body(request: Request[State]) -> object:
    body = await request.body()
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        # From a copy: a form's file can be read once, and the endpoint will want to.
        async with multipart(_replay(request, body)) as form:
            return form.get("model")
    try:
        parsed = loads(body)
    except orjson.JSONDecodeError:
        return None
    return parsed.get("model") if isinstance(parsed, dict) else None


def _replay(request: Request[State], body: bytes) -> Request[State]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)
