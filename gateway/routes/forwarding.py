"""Requests that go to an upstream instead of a model here, or in its place: decided before anything is judged of them.

`proxy.routing.plan` decides. Whoever is asked first, the other side may answer in its place as long as the client has
got nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batching.errors import EngineFailed, OutOfMemory, QueueFull, ShuttingDown
from gateway.errors import RouteForbidden, UnknownUrl, error_event
from gateway.schemas.common import loads
from gateway.state import State
from handlers.errors import InvalidRequest, ModelLoading
from proxy.body import Content, with_model
from proxy.errors import UpstreamError
from proxy.form import Upload, is_form
from proxy.headers import RawHeaders
from proxy.relay import RelayResponse, served_by
from proxy.routing import Facts, Mode, Plan, Reason, Target, plan, turns_to_upstream
from proxy.target import path_of
from proxy.upstreams import Outgoing, Upstreams

Endpoint = Callable[[Request[State]], Awaitable[ASGIApp]]
Knows = Callable[[Request[State]], bool]

# What a model here refuses with though nothing is wrong with the request.
_REFUSALS: Mapping[type[Exception], Reason] = {
    QueueFull: Reason.QUEUE_FULL,
    ModelLoading: Reason.LOADING,
    OutOfMemory: Reason.OUT_OF_MEMORY,
    EngineFailed: Reason.FAILING,
    ShuttingDown: Reason.FAILING,
}
# Statuses of an upstream in whose place a model here may answer: it does not know us, or the model, or is not well.
_DECLINED = frozenset({401, 403, 404, 408, 429, 500, 502, 503, 504})


def or_upstream(endpoint: Endpoint, *, at: str | None = None, knows: Knows | None = None) -> Endpoint:
    """`endpoint` for what is served here, an upstream for what is not, or as the modes say. Without one, `endpoint`.

    at: the upstream's path for it, if it is not the request's own. knows: which requests are answered here whatever the
        mode, unless they ask for an upstream by name.
    """

    @wraps(endpoint)
    async def route(request: Request[State]) -> ASGIApp:
        if request.state["upstreams"] is None:
            return await endpoint(request)
        return _Exchange(request, endpoint, at, knows)

    return route


async def forward(request: Request[State]) -> ASGIApp:
    """What only an upstream can answer."""
    return _Exchange(request, _unknown, None, None)


async def _unknown(request: Request[State]) -> ASGIApp:
    raise UnknownUrl(request.method, request.url.path)


class _Exchange:
    """An ASGI response: the answer of a model here, or of an upstream."""

    def __init__(self, request: Request[State], endpoint: Endpoint, at: str | None, knows: Knows | None) -> None:
        upstreams = request.state["upstreams"]
        assert upstreams is not None, "routes lead here only with upstreams"
        self._request = request
        self._endpoint = endpoint
        self._knows = knows
        self._path = at or path_of(request.scope)
        self._upstreams: Upstreams = upstreams
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content_type = self._request.headers.get("content-type", "")
        if not is_form(content_type):
            body = await self._request.body()
            await self._answer(_Plain(self._request, body), send)
            return
        upload = Upload(self._request.receive, content_type)
        try:
            await self._answer(_Form(self._request, upload, await upload.model()), send)
        finally:
            upload.close()

    async def _answer(self, body: "_Plain | _Form", send: Send) -> None:
        mode = self._request.state["settings"].mode_of(body.model)
        decided = self._plan(mode, body.model)
        body.keep(decided.otherwise)
        if decided.target is Target.UPSTREAM:
            await self._upstream_first(body, decided, send)
        else:
            await self._local_first(body, decided, mode, send)

    def _plan(self, mode: Mode, model: str | None) -> Plan:
        wish, local_only = _wish(self._request), _is_local_only(self._request)
        if wish is None and self._knows is not None and self._knows(self._request):
            return Plan(Target.LOCAL, Reason.SERVED_HERE)
        settings, registry = self._request.state["settings"], self._request.state["registry"]
        known = self._endpoint is not _unknown
        here = registry.find(model) if known and model is not None and model in registry else None
        # What names no model, or not in a way that can be read, is answered here: with what is wrong with it.
        served_here = here is not None or (known and model is None and bool(registry.models))
        facts = Facts(
            mode,
            served_here,
            ready=here is None or here.ready,
            predicted_wait=here.predicted_wait() if here is not None and mode is Mode.OVERFLOW else 0.0,
            longest_wait=settings.upstream_longest_wait,
            served_upstream=self._upstreams.serves(model),
            available=self._upstreams.available(model),
            wish=wish,
            local_only=local_only,
        )
        return plan(facts)

    async def _upstream_first(self, body: "_Plain | _Form", decided: Plan, send: Send) -> None:
        decline = _DECLINED if decided.otherwise else frozenset()
        try:
            await self._relay(body, decided.reason, decline, send)
        except UpstreamError:
            if self._begun or not decided.otherwise:
                raise
            self._request.state["metrics"].upstreams.fell_back(Target.LOCAL, Reason.UPSTREAM_FAILED)
            await self._local(body, Reason.UPSTREAM_FAILED, send)

    async def _local_first(self, body: "_Plain | _Form", decided: Plan, mode: Mode, send: Send) -> None:
        try:
            await self._local(body, decided.reason, send)
        except tuple(_REFUSALS) as refusal:
            reason = next(reason for kind, reason in _REFUSALS.items() if isinstance(refusal, kind))
            if self._begun or not decided.otherwise or not turns_to_upstream(mode, reason):
                raise
            try:
                await self._relay(body, reason, _DECLINED, send)
            except UpstreamError:
                if self._begun:
                    raise
                # Nobody could answer; what is said here tells the client when to come back.
                raise refusal from None

    async def _local(self, body: "_Plain | _Form", reason: Reason, send: Send) -> None:
        request = body.request()
        app = await self._endpoint(request)
        await app(request.scope, request.receive, self._watched(send, served_by("local", reason)))

    async def _relay(self, body: "_Plain | _Form", reason: Reason, decline: frozenset[int], send: Send) -> None:
        if reason not in (Reason.MODE, Reason.ROUTE_HEADER):
            self._request.state["metrics"].upstreams.fell_back(Target.UPSTREAM, reason)
        outgoing = Outgoing(self._request.method, self._path, body.model, body.content, body.replayable)
        response = RelayResponse(
            self._upstreams.send(outgoing, decline),
            reason=reason,
            on_error=error_event,
            send_timeout=self._request.state["settings"].send_timeout,
            deadline=self._request.scope["gateway.deadline"],
        )
        await response(self._request.scope, body.after_body, self._watched(send, ()))

    def _watched(self, send: Send, added: "list[tuple[bytes, bytes]] | tuple[()]") -> Send:
        async def watched(message: Message) -> None:
            self._begun = True
            if added and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        return watched


class _Plain:
    """A body that lies in memory: JSON, or whatever an unknown path takes."""

    replayable = True

    def __init__(self, request: Request[State], body: bytes) -> None:
        self._request = request
        self._body = body
        named = request.path_params.get("model") or _model_in(body)
        self.model = named if isinstance(named, str) else None
        self.after_body: Receive = request.receive

    def keep(self, wanted: bool) -> None:
        """It is kept anyway."""

    def request(self) -> Request[State]:
        return self._request

    def content(self, name: str | None) -> tuple[RawHeaders, Content]:
        body = self._body if name is None else with_model(self._body, name)
        return self._request.headers.raw, body


@dataclass
class _Form:
    """A form, of which only as much has been read as it takes to know the model."""

    original: Request[State]
    upload: Upload
    model: str | None
    replayable: bool = False

    def keep(self, wanted: bool) -> None:
        self.upload.keep = wanted
        self.replayable = wanted

    def request(self) -> Request[State]:
        return Request(self.original.scope, self.upload.receive())

    def content(self, name: str | None) -> tuple[RawHeaders, Content]:
        headers = self.original.headers.raw
        if name is not None:
            headers = [_longer(pair, self.upload.longer_by(name)) for pair in headers]
        return headers, self.upload.pieces(name)

    async def after_body(self) -> Message:
        return await self.upload.rest()


def _longer(header: tuple[bytes, bytes], by: int) -> tuple[bytes, bytes]:
    name, value = header
    return (name, b"%d" % (int(value) + by)) if name == b"content-length" else header


def _model_in(body: bytes) -> object:
    try:
        parsed = loads(body) if body else None
    except orjson.JSONDecodeError:
        return None
    return parsed.get("model") if isinstance(parsed, dict) else None


def _wish(request: Request[State]) -> Target | None:
    """Raises InvalidRequest, RouteForbidden."""
    given = request.headers.get("x-gateway-route")
    if given is None:
        return None
    if given not in tuple(Target):
        raise InvalidRequest(
            "The header x-gateway-route must be local or upstream.", "x-gateway-route", "invalid_value"
        )
    if given == Target.UPSTREAM and not _may_choose(request):
        raise RouteForbidden
    return Target(given)


def _may_choose(request: Request[State]) -> bool:
    settings = request.state["settings"]
    allowed = {sha256(key.get_secret_value().encode()).hexdigest() for key in settings.upstream_route_keys}
    return not settings.api_keys or request.scope.get("gateway.caller") in allowed


def _is_local_only(request: Request[State]) -> bool:
    """Raises InvalidRequest: a request that is marked in a way that cannot be read must not leave, either."""
    given = request.headers.get("x-local-only", "false").lower()
    if given not in ("true", "1", "false", "0"):
        raise InvalidRequest("The header x-local-only must be true or false.", "x-local-only", "invalid_value")
    return given in ("true", "1")
