"""A bound on every request body, by what it declares and by what it turns out to be."""

import sys
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BodyTooLarge, UnsupportedContentType, error_response
from gateway.middleware.asgi import header, with_headers
from handlers.errors import InvalidRequest


class BodyLimit:
    """Refuses a body that declares too much before a byte of it is read, and stops reading one that becomes too much.

    max_bytes: the limit of every path; `by_path` has the exceptions.

    A compressed body is refused whatever its size: nothing here inflates requests, so there is no bomb to defuse.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, by_path: Mapping[str, int]) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._max_bytes)
        declared = _declared_length(scope)
        body = _Body(receive, send, limit, pending=declared != 0 or header(scope, b"upgrade") is not None)
        try:
            _check_upgrade(scope)
            _check_encoding(scope)
            if declared is not None and declared > limit:
                raise BodyTooLarge(limit)
        except (InvalidRequest, UnsupportedContentType, BodyTooLarge) as refusal:
            # `receive` is not called: calling it would tell a client that waits with `Expect: 100-continue` to go on.
            await error_response(refusal)(scope, receive, body.send)
        else:
            await self.app(scope, body.receive, body.send)


def _declared_length(scope: Scope) -> int | None:
    """Bytes of body to come; None if it comes in chunks. What is no sane number counts as too many."""
    if (length := header(scope, b"content-length")) is not None:
        return int(length) if length.isdigit() and len(length) < 19 else sys.maxsize
    return None if header(scope, b"transfer-encoding") is not None else 0


def _check_upgrade(scope: Scope) -> None:
    """The server takes what follows such a head for another protocol: the body is lost, or read as the next request."""
    if header(scope, b"upgrade") is not None:
        raise InvalidRequest("Only HTTP/1.1 is spoken here. Send the request without `Upgrade`.", "upgrade")


def _check_encoding(scope: Scope) -> None:
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedContentType("Compressed request bodies are not taken. Send it without `Content-Encoding`.")


class _Body:
    """Counts a body as it is read, and closes the connection of a reply that does not wait for its end.

    Otherwise the server would have to read the rest, and throw it away, to get to the next request.
    """

    def __init__(self, receive: Receive, send: Send, limit: int, *, pending: bool) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._pending = pending
        self._received = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._limit:
                raise BodyTooLarge(self._limit)
            self._pending = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._pending and message["type"] == "http.response.start":
            message = with_headers(message, [(b"connection", b"close")])
        await self._send(message)
