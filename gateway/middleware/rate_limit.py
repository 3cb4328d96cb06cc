"""So many requests a caller and a window, counted by slowapi's limiter.

slowapi's own middlewares are passed over: one is a BaseHTTPMiddleware, the other needs to find the route first and
counts each path apart. Its memory storage is, too: it starts a thread a request, which walks through every key.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItem, WindowStats, parse_many
from limits.storage import Storage
from slowapi import Limiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import RateLimited, error_response
from gateway.middleware.asgi import with_headers
from gateway.middleware.paths import MACHINES

Clock = Callable[[], float]

_MAX_WINDOWS = 50_000  # about 15 MB; a caller beyond that pushes out the oldest window, whoever's it is


class RateLimit:
    """Refuses with 429 and `Retry-After`, and tells every caller in `x-ratelimit-*-requests` where it stands.

    rate: one or more limits, such as `60/minute` or `10/second; 1000/hour`. A window starts with a caller's first
        request. A caller is an API key, or without keys the address at the other end of the connection; no header of
        the client's has a say in that.
    """

    def __init__(self, app: ASGIApp, rate: str, *, clock: Clock = time.monotonic) -> None:
        self.app = app
        self._clock = clock
        self._rates = parse_many(rate)
        self._windows = Limiter(
            key_func=_caller,
            strategy="fixed-window",
            storage_uri="windows://",
            storage_options={"clock": clock},  # type: ignore[dict-item]  # handed on as it is
        ).limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in MACHINES:
            await self.app(scope, receive, send)
            return
        rate, window, admitted = self._count(_caller(scope))
        wait = max(0.0, window.reset_time - self._clock())

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = with_headers(message, _headers(rate.amount, window.remaining, wait))
            await send(message)

        if admitted:
            await self.app(scope, receive, send_with_limits)
        else:
            refusal = error_response(RateLimited(_in_words(rate), wait))
            await refusal(scope, receive, send_with_limits)

    def _count(self, caller: str) -> tuple[RateLimitItem, WindowStats, bool]:
        """Counts one request; returns the limit that refuses it, or else the one with the fewest requests left."""
        standings = []
        for rate in self._rates:
            admitted = self._windows.hit(rate, caller)
            standing = (rate, self._windows.get_window_stats(rate, caller), admitted)
            if not admitted:
                return standing
            standings.append(standing)
        return min(standings, key=lambda standing: standing[1].remaining)


class WindowStorage(Storage):
    """The counts of fixed windows, for one event loop: no lock and no thread; what is over goes when others come."""

    STORAGE_SCHEME = ["windows"]

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        *,
        clock: Clock = time.monotonic,
        max_windows: int = _MAX_WINDOWS,
    ) -> None:
        super().__init__(uri, wrap_exceptions)
        self._clock = clock
        self._max_windows = max_windows
        self._windows: dict[str, tuple[int, float]] = {}  # key -> (count, end), the oldest first

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count, end = self._windows.get(key, (0, -math.inf))
        if self._clock() >= end:
            self._windows.pop(key, None)
            self._make_room()
            count, end = 0, self._clock() + expiry
        self._windows[key] = (count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        count, end = self._windows.get(key, (0, -math.inf))
        return count if self._clock() < end else 0

    def get_expiry(self, key: str) -> float:
        """When the window ends, on this storage's clock."""
        return self._windows.get(key, (0, self._clock()))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _make_room(self) -> None:
        while self._windows:
            oldest = next(iter(self._windows))
            if len(self._windows) < self._max_windows and self._clock() < self._windows[oldest][1]:
                return
            del self._windows[oldest]


def _caller(scope: Scope) -> str:
    if (key_digest := scope.get("gateway.caller")) is not None:
        return str(key_digest)
    client: Any = scope.get("client")
    return client[0] if client else "local"


def _headers(limit: int, remaining: int, reset: float) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % limit),
        (b"x-ratelimit-remaining-requests", b"%d" % remaining),
        (b"x-ratelimit-reset-requests", _duration(reset).encode()),
    ]


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `1s`, `6m0s`, `1h0m0s`."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute}m{second}s"
    return f"{minute}m{second}s" if minute else f"{second}s"


def _in_words(rate: RateLimitItem) -> str:
    unit = rate.GRANULARITY.name
    return f"{rate.amount} requests per {unit if rate.multiples == 1 else f'{rate.multiples} {unit}s'}"
