"""Who and what is let in: body sizes, keys and times, on a clock that stands still."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import exception_handlers
from gateway.middleware.api_key import ApiKey
from gateway.middleware.body_limit import BodyLimit
from gateway.middleware.deadline import Deadline
from tests.clock import MANUAL_CLOCK, advance, settle
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ok")(scope, receive, send)


async def read(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def answering(app: ASGIApp) -> ASGIApp:
    return ExceptionMiddleware(app, exception_handlers)


# --- body limit


def limited(app: ASGIApp = read, limit: int = 10) -> ASGIApp:
    return BodyLimit(answering(app), limit, {"/v1/audio/transcriptions": 1000})


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    client = await RawClient(headers=[("content-length", "10")], body=[b"x" * 10]).call(limited())
    assert (client.status, client.chunks) == (200, [b"10"])
    assert "connection" not in client.headers


@pytest.mark.parametrize("length", ["11", "10000000000", "9" * 5000, "-1", "1e3", ""])
async def test_a_declared_length_over_the_limit_or_beyond_belief_is_refused_before_a_byte_is_read(length: str) -> None:
    client = await RawClient(headers=[("content-length", length)], endless=True).call(limited())
    assert (client.status, client.error["code"]) == (413, "request_too_large")
    assert "10 bytes" in client.error["message"]
    assert client.receives == 0
    assert client.headers["connection"] == "close"


async def test_a_chunked_body_is_cut_as_soon_as_it_is_over_the_limit() -> None:
    client = RawClient(headers=[("transfer-encoding", "chunked")], body=[b"x" * 6] * 100, endless=True)
    await client.call(limited())
    assert (client.status, client.error["code"]) == (413, "request_too_large")
    assert client.receives == 2
    assert client.headers["connection"] == "close"


async def test_a_path_can_have_a_limit_of_its_own() -> None:
    client = await RawClient("/v1/audio/transcriptions", body=[b"x" * 1000]).call(limited())
    assert client.status == 200
    client = await RawClient("/v1/audio/transcriptions", headers=[("content-length", "1001")]).call(limited())
    assert client.status == 413


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate", "gzip, identity", "GZIP"])
async def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    client = await RawClient(headers=[("content-encoding", encoding), ("content-length", "5")]).call(limited())
    assert (client.status, client.error["code"]) == (415, "unsupported_content_type")
    assert client.receives == 0


@pytest.mark.parametrize("encoding", ["identity", " Identity "])
async def test_a_body_that_says_it_is_not_compressed_is_taken(encoding: str) -> None:
    assert (await RawClient(headers=[("content-encoding", encoding)]).call(limited())).status == 200


@pytest.mark.parametrize("headers", [[("content-length", "5")], [("transfer-encoding", "chunked")]])
async def test_a_reply_that_does_not_wait_for_the_body_closes_the_connection(
    headers: Iterable[tuple[str, str]],
) -> None:
    client = await RawClient(headers=headers, body=[b"hello"]).call(limited(ok))
    assert client.headers["connection"] == "close"


async def test_a_reply_to_a_request_without_a_body_keeps_the_connection() -> None:
    client = await RawClient(method="GET").call(limited(ok))
    assert "connection" not in client.headers


async def test_a_reply_that_waits_for_a_chunked_body_keeps_the_connection() -> None:
    client = RawClient(headers=[("transfer-encoding", "chunked")], body=[b"abc", b"de"])
    await client.call(limited())
    assert client.chunks == [b"5"]
    assert "connection" not in client.headers


# --- API keys

KEYS = [SecretStr("sk-one"), SecretStr("sk-two")]


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


@pytest.mark.parametrize("header", ["Bearer sk-one", "bearer sk-two", "BEARER  sk-one "])
async def test_each_key_opens_the_door(header: str) -> None:
    client = await RawClient(headers=[("authorization", header)]).call(ApiKey(ok, KEYS))
    assert client.status == 200


@pytest.mark.parametrize(
    "key", ["sk-on", "sk-onee", "SK-ONE", "sk-one,sk-two", "' OR 1=1 --", "sk-one\x00", "ü", "x" * 1_000_000]
)
async def test_a_wrong_key_is_refused_and_not_repeated(key: str) -> None:
    client = await RawClient(headers=bearer(key)).call(ApiKey(ok, KEYS))
    assert (client.status, client.error["code"]) == (401, "invalid_api_key")
    assert client.headers["www-authenticate"] == "Bearer"
    assert key not in client.error["message"]


@pytest.mark.parametrize("headers", [[], [("authorization", "")], [("authorization", "Bearer")], bearer(" ")])
async def test_a_request_without_a_key_is_told_where_it_goes(headers: list[tuple[str, str]]) -> None:
    client = await RawClient(headers=headers).call(ApiKey(ok, KEYS))
    assert client.status == 401
    assert "Authorization: Bearer" in client.error["message"]


async def test_another_scheme_is_not_a_bearer_key() -> None:
    client = await RawClient(headers=[("authorization", "Basic sk-one")]).call(ApiKey(ok, KEYS))
    assert client.status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_checks_need_no_key(path: str) -> None:
    assert (await RawClient(path, method="GET").call(ApiKey(ok, KEYS))).status == 200


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/healthz/../v1/models", "/v1/models?/healthz", "/Healthz"])
async def test_no_other_path_passes_for_a_health_check(path: str) -> None:
    assert (await RawClient(path, method="GET").call(ApiKey(ok, KEYS))).status == 401


@pytest.mark.parametrize("host", ["a/healthz?x=", "a/healthz#", "/healthz"])
async def test_a_host_header_cannot_make_a_path_another(host: str) -> None:
    client = await RawClient("/v1/models", method="GET", headers=[("host", host)]).call(ApiKey(ok, KEYS))
    assert client.status == 401


async def test_callers_are_told_apart_by_a_digest_of_their_key() -> None:
    clients = [RawClient(headers=bearer(key)) for key in ("sk-one", "sk-one", "sk-two")]
    for client in clients:
        await client.call(ApiKey(ok, KEYS))
    first, same, other = (client.scope["gateway.caller"] for client in clients)
    assert first == same != other
    assert "sk-one" not in first


# --- deadline


def timed(app: ASGIApp = ok, request_timeout: float = 600.0, body_timeout: float = 30.0) -> ASGIApp:
    return Deadline(answering(app), request_timeout, body_timeout)


async def started(client: RawClient, app: ASGIApp) -> "asyncio.Task[RawClient]":
    task = asyncio.ensure_future(client.call(app))
    await settle()
    return task


async def deadlines(*headers: tuple[str, str]) -> tuple[float, float]:
    """How far off `gateway.deadline` and `gateway.reply_deadline` are, in seconds."""
    client = await RawClient(headers=headers).call(timed())
    now = asyncio.get_running_loop().time()
    return client.scope["gateway.deadline"] - now, client.scope["gateway.reply_deadline"] - now


async def test_a_request_has_the_servers_time_by_default() -> None:
    assert await deadlines() == (600, 600)


async def test_a_client_can_ask_for_less_time_but_not_for_more() -> None:
    assert await deadlines(("x-request-timeout", "2.5")) == (2.5, 2.5)
    assert await deadlines(("x-request-timeout", "6000")) == (600, 600)


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan", "inf", "30s"])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(value: str) -> None:
    client = await RawClient(headers=[("x-request-timeout", value)]).call(timed())
    assert (client.status, client.error["param"]) == (400, "x-request-timeout")


async def test_the_sdks_read_timeout_bounds_whole_replies_and_not_streams_and_leaves_it_to_the_sdk_to_notice() -> None:
    assert await deadlines(("x-stainless-read-timeout", "20")) == (600, 21)
    both = ("x-stainless-read-timeout", "20"), ("x-request-timeout", "10")
    assert await deadlines(*both) == (10, 10)


@pytest.mark.parametrize("value", ["None", "", "0", "-1", "nan", "inf"])
async def test_an_sdk_that_waits_for_ever_is_no_mistake(value: str) -> None:
    assert await deadlines(("x-stainless-read-timeout", value)) == (600, 600)


async def test_a_body_that_stops_coming_is_a_408() -> None:
    client = RawClient(body=[b"{"], endless=True)
    task = await started(client, timed(read, body_timeout=30))
    await advance(29.9)
    assert not task.done()
    await advance(0.2)
    assert task.done()
    assert (client.status, client.error["code"]) == (408, "request_timeout")


class Uploader(RawClient):
    """Sends a chunk each time it is told to."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.chunks_to_send: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        chunk = await self.chunks_to_send.get()
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}


async def test_a_drip_is_a_408_however_steady_it_is() -> None:
    client = Uploader()
    task = await started(client, timed(read, body_timeout=30))
    for _ in range(31):
        client.chunks_to_send.put_nowait(b"x")
        await advance(1)
    assert task.done()
    assert client.status == 408


async def test_a_large_upload_over_a_slow_line_is_given_its_time() -> None:
    client = Uploader()
    task = await started(client, timed(read, body_timeout=30))
    for _ in range(100):
        client.chunks_to_send.put_nowait(b"x" * 20_000)
        await advance(1)
    client.chunks_to_send.put_nowait(b"")
    await settle()
    assert task.done()
    assert (client.status, client.chunks) == (200, [b"2000000"])


async def test_no_upload_goes_on_past_the_deadline_of_its_request() -> None:
    client = Uploader()
    task = await started(client, timed(read, request_timeout=50, body_timeout=30))
    for _ in range(50):
        client.chunks_to_send.put_nowait(b"x" * 20_000)
        await advance(1)
    assert task.done()
    assert client.status == 408


async def test_waiting_for_the_client_to_leave_is_not_waiting_for_a_body() -> None:
    messages = []

    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        messages.append(await receive())

    client = RawClient()
    task = await started(client, timed(listen, body_timeout=30))
    await advance(100)
    assert not task.done()
    client.leave()
    await task
    assert messages == [{"type": "http.disconnect"}]
