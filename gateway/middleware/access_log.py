"""One log line a request, and its place in the metrics."""

import logging
import time
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.paths import MACHINES
from gateway.telemetry.requests import RequestMetrics

logger = logging.getLogger("gateway.access")

_CLIENT_LEFT = 499  # nginx's word for it; never sent
_MAX_PATH = 200  # characters


class AccessLog:
    """Method, path, status, milliseconds and bytes. Never the query, a header or a body: those hold secrets.

    metrics: where requests are counted; None counts nothing. clock: seconds.
    """

    def __init__(
        self, app: ASGIApp, metrics: RequestMetrics | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = self._clock()
        exchange = _Exchange(receive, send)
        if self._metrics is not None:
            self._metrics.begin()
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.client_left = True
        finally:
            seconds = self._clock() - started
            if self._metrics is not None:
                self._metrics.end(scope["method"], scope["path"], exchange.status, seconds)
            _log(scope, exchange, seconds * 1000)


class _Exchange:
    """Watches the messages of one request go by."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._sent_status: int | None = None
        self._complete = False
        self.client_left = False
        self.bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self.client_left = True
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._sent_status = message["status"]
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)

    @property
    def status(self) -> int:
        """What the client got; 499 if it left before that, 500 if we broke off."""
        if self._complete and self._sent_status is not None:
            return self._sent_status
        return _CLIENT_LEFT if self.client_left else 500


def _log(scope: Scope, exchange: _Exchange, milliseconds: float) -> None:
    level = logging.DEBUG if scope["path"] in MACHINES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {
        "method": scope["method"],
        "path": _printable(scope["path"][:_MAX_PATH]),
        "status": exchange.status,
        "duration_ms": round(milliseconds, 1),
        "bytes": exchange.bytes,
    }
    logger.log(level, "%(method)s %(path)s %(status)d %(duration_ms).1f ms %(bytes)d B", fields, extra=fields)


def _printable(path: str) -> str:
    # A path is percent-decoded, so it can hold line breaks, with which a client would write log lines of its own.
    return path if path.isprintable() else ascii(path)[1:-1]
