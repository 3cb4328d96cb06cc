"""So many requests a caller and a window; the clock is an argument."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.middleware.rate_limit import RateLimit, WindowStorage
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 5_000.0

    def __call__(self) -> float:
        return self.now


class Limited:
    """The layer under test, with what it has let through."""

    def __init__(self, rate: str) -> None:
        self.clock = Clock()
        self.admitted = 0
        self.layer = RateLimit(self._ok, rate, clock=self.clock)

    async def _ok(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.admitted += 1
        await PlainTextResponse("ok")(scope, receive, send)

    async def ask(
        self, address: str = "192.0.2.1", *, path: str = "/v1/embeddings", headers: list[tuple[str, str]] | None = None
    ) -> RawClient:
        return await RawClient(path, peer=(address, 1), headers=headers or []).call(self.layer)

    async def statuses(self, count: int, address: str = "192.0.2.1") -> list[int]:
        return [(await self.ask(address)).status for _ in range(count)]


async def test_exactly_as_many_as_allowed_pass() -> None:
    limited = Limited("3/minute")
    assert await limited.statuses(5) == [200, 200, 200, 429, 429]
    assert limited.admitted == 3


async def test_requests_at_the_same_time_are_counted_exactly_too() -> None:
    limited = Limited("10/minute")
    await asyncio.gather(*(limited.ask() for _ in range(50)))
    assert limited.admitted == 10


async def test_a_new_window_begins_when_the_old_one_is_over() -> None:
    limited = Limited("2/minute")
    assert await limited.statuses(3) == [200, 200, 429]
    limited.clock.now += 59.9
    assert await limited.statuses(1) == [429]
    limited.clock.now += 0.1
    assert await limited.statuses(3) == [200, 200, 429]


async def test_the_refusal_says_when_to_come_back() -> None:
    limited = Limited("1/minute")
    await limited.ask()
    limited.clock.now += 12.5
    client = await limited.ask()
    assert client.error["message"] == "Rate limit reached: 1 requests per minute. Retry in 48 s."
    assert (client.error["type"], client.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert client.headers["retry-after"] == "48"
    assert client.headers["x-ratelimit-remaining-requests"] == "0"
    assert client.headers["x-ratelimit-reset-requests"] == "48s"


@pytest.mark.parametrize(
    ("rate", "reset"), [("5/minute", "1m0s"), ("5/second", "1s"), ("5/hour", "1h0m0s"), ("5 per 6 minute", "6m0s")]
)
async def test_every_reply_says_where_the_caller_stands(rate: str, reset: str) -> None:
    client = await Limited(rate).ask()
    standing = {name: value for name, value in client.headers.items() if name.startswith("x-ratelimit")}
    assert standing == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": reset,
    }


async def test_callers_do_not_use_up_each_others_limit() -> None:
    limited = Limited("1/minute")
    assert await limited.statuses(2, "192.0.2.1") == [200, 429]
    assert await limited.statuses(2, "192.0.2.2") == [200, 429]


async def test_all_paths_count_together_and_health_checks_not_at_all() -> None:
    limited = Limited("2/minute")
    paths = ["/v1/embeddings", "/healthz", "/readyz", "/v1/chat/completions", "/v1/models", "/healthz"]
    assert [(await limited.ask(path=path)).status for path in paths] == [200, 200, 200, 200, 429, 200]


@pytest.mark.parametrize("header", ["x-forwarded-for", "x_forwarded_for", "x-real-ip", "forwarded"])
async def test_a_header_does_not_make_another_caller(header: str) -> None:
    limited = Limited("1/minute")
    await limited.ask(headers=[(header, "203.0.113.1")])
    assert (await limited.ask(headers=[(header, "203.0.113.2")])).status == 429


async def test_a_key_is_the_caller_wherever_it_is_used_from() -> None:
    limited = Limited("1/minute")
    for address, expected in [("192.0.2.1", 200), ("192.0.2.2", 429)]:
        client = RawClient(peer=(address, 1))
        client.scope["gateway.caller"] = "digest"
        assert (await client.call(limited.layer)).status == expected


async def test_a_connection_without_an_address_has_a_limit_as_well() -> None:
    limited = Limited("1/minute")
    statuses = [(await RawClient(peer=None).call(limited.layer)).status for _ in range(2)]
    assert statuses == [200, 429]


async def test_of_several_limits_the_tightest_is_shown_and_the_first_used_up_refuses() -> None:
    limited = Limited("2/second; 3/minute")
    assert (await limited.ask()).headers["x-ratelimit-limit-requests"] == "2"
    assert await limited.statuses(2) == [200, 429]  # the refused one does not count for the minute
    limited.clock.now += 1
    client = (await limited.ask(), await limited.ask())[1]
    assert client.status == 429
    assert client.headers["x-ratelimit-limit-requests"] == "3"
    assert client.headers["retry-after"] == "59"


def test_memory_is_bounded_whatever_the_number_of_callers() -> None:
    storage = WindowStorage(clock=Clock(), max_windows=1000)
    for caller in range(100_000):
        storage.incr(str(caller), 60)
    assert storage.reset() == 1000


def test_windows_that_are_over_make_room_first() -> None:
    clock = Clock()
    storage = WindowStorage(clock=clock, max_windows=1000)
    for caller in range(10):
        storage.incr(f"early {caller}", 60)
    clock.now += 60
    storage.incr("late", 60)
    assert storage.reset() == 1


def test_a_window_keeps_its_count_and_its_end() -> None:
    clock = Clock()
    storage = WindowStorage(clock=clock)
    assert [storage.incr("a", 60), storage.incr("a", 60, amount=2)] == [1, 3]
    assert (storage.get("a"), storage.get("b")) == (3, 0)
    assert storage.get_expiry("a") == clock.now + 60
    clock.now += 60
    assert storage.get("a") == 0
    storage.incr("a", 60)
    storage.clear("a")
    assert storage.get("a") == 0
    assert storage.check()
