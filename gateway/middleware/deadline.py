"""How long a request may take, and its body to arrive."""

import asyncio
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BodyTimeout, error_response
from gateway.middleware.asgi import header
from handlers.errors import InvalidRequest

# A body that keeps up this rate may take longer than the time for bodies: a large upload over a slow line is no attack.
_MIN_BYTES_PER_SECOND = 16 * 1024

# Seconds. A client that gives up should find that out by itself, as it expects to, and not from a 504 just before.
_GRACE = 1.0


class Deadline:
    """Puts two times on the event loop's clock into the scope, and holds the body to its own.

    gateway.deadline: the whole request. The client may shorten it with `x-request-timeout`, in seconds.
    gateway.reply_deadline: a reply that is sent whole. OpenAI's SDKs say in `x-stainless-read-timeout` for how many
        seconds of silence they wait; a stream that is never silent for that long may go on until `gateway.deadline`.
    """

    def __init__(self, app: ASGIApp, request_timeout: float, body_timeout: float) -> None:
        self.app = app
        self._request_timeout = request_timeout
        self._body_timeout = body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        now = asyncio.get_running_loop().time()
        try:
            deadline = now + min(self._request_timeout, _request_timeout(scope))
        except InvalidRequest as refusal:
            await error_response(refusal)(scope, receive, send)
            return
        scope["gateway.deadline"] = deadline
        scope["gateway.reply_deadline"] = min(deadline, now + _read_timeout(scope) + _GRACE)
        body = _TimedBody(receive, due=now + self._body_timeout, deadline=deadline)
        await self.app(scope, body.receive, send)


def _request_timeout(scope: Scope) -> float:
    given = header(scope, b"x-request-timeout")
    if given is None:
        return math.inf
    if (seconds := _seconds(given)) is None:
        raise InvalidRequest(
            "The header x-request-timeout must be a number of seconds above 0.", "x-request-timeout", "invalid_value"
        )
    return seconds


def _read_timeout(scope: Scope) -> float:
    # SDKs add this header by themselves, so there is nobody to blame for a value that is no number.
    given = header(scope, b"x-stainless-read-timeout")
    return (given and _seconds(given)) or math.inf


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


class _TimedBody:
    """Raises BodyTimeout from `receive` if the body is not there when it is due. Each byte that comes moves that on."""

    def __init__(self, receive: Receive, *, due: float, deadline: float) -> None:
        self._receive = receive
        self._due = due
        self._deadline = deadline
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(min(self._due, self._deadline)):
                message = await self._receive()
        except TimeoutError as exc:
            raise BodyTimeout from exc
        self._complete = not message.get("more_body", False)
        self._due += len(message.get("body", b"")) / _MIN_BYTES_PER_SECOND
        return message
