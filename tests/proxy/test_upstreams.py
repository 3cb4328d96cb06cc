"""Several attempts, several upstreams: what is asked again, and what is left alone."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.breaker import FAILURES, FIRST_PAUSE, BreakerState
from proxy.errors import NotServed, UpstreamDeclined, UpstreamSpared, UpstreamTimeout, UpstreamUnreachable
from proxy.spec import UpstreamSpec
from proxy.upstream import Upstream
from proxy.upstreams import Outgoing, Upstreams
from tests.clock import advance, settle, until
from tests.proxy.chaos_upstream import (
    Mode,
    Wire,
    answer,
    chaos_upstream,
    cut_after,
    event_stream,
    hang,
    refusing_upstream,
)

CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.anyio


class Noted:
    """An observer that writes down."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []
        self.failures: list[tuple[str, str]] = []
        self.retries: list[str] = []

    def answered(self, upstream: str, status: int, seconds: float) -> None:
        self.answers.append((upstream, status))

    def failed(self, upstream: str, kind: str) -> None:
        self.failures.append((upstream, kind))

    def retried(self, upstream: str) -> None:
        self.retries.append(upstream)


@asynccontextmanager
async def fleet(*specs: UpstreamSpec, wall: float = 0.0) -> AsyncIterator[tuple[Upstreams, Noted]]:
    noted = Noted()
    upstreams = Upstreams([Upstream(spec) for spec in specs], noted, chance=lambda: 0.0, wall=lambda: wall)
    try:
        yield upstreams, noted
    finally:
        await upstreams.aclose()


async def ask(upstreams: Upstreams, path: str = CHAT, *, model: str | None = "m", decline: Sequence[int] = ()) -> bytes:
    outgoing = Outgoing("POST", path, model, lambda name: ([], (name or model or "").encode()))
    async with upstreams.send(outgoing, frozenset(decline)) as reply:
        return b"%d " % reply.status + b"".join([chunk async for chunk in reply.chunks])


def in_turn(*modes: Mode) -> Mode:
    """Each request gets the next mode; the last one stays."""
    left = list(modes)

    async def mode(wire: Wire) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(wire)

    return mode


async def reset(wire: Wire) -> None:
    wire.reset()


@pytest.mark.parametrize(
    "failure",
    [answer(502), answer(503), answer(504), answer(429), answer(429, [(b"retry-after", b"0")]), cut_after(), reset],
    ids=["502", "503", "504", "429", "429 at once", "cut after the head", "reset"],
)
async def test_a_passing_failure_is_asked_again_once(failure: Mode) -> None:
    async with chaos_upstream(in_turn(failure, answer(body=b"ok"))) as server:
        async with fleet(UpstreamSpec(server.url)) as (upstreams, noted):
            assert await ask(upstreams) == b"200 ok"

    assert noted.retries == ["upstream"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500, 501])
async def test_a_verdict_on_the_request_is_not_asked_for_twice(status: int) -> None:
    async with (
        chaos_upstream(answer(status, body=b"no")) as server,
        fleet(UpstreamSpec(server.url)) as (upstreams, noted),
    ):
        assert await ask(upstreams) == b"%d no" % status

    assert (len(server.requests), noted.retries) == (1, [])


@pytest.mark.parametrize("failure", [answer(503), cut_after()], ids=["503", "cut after the head"])
async def test_what_changes_something_is_sent_once(failure: Mode) -> None:
    async with chaos_upstream(failure) as server, fleet(UpstreamSpec(server.url)) as (upstreams, _):
        try:
            assert (await ask(upstreams, "/v1/batches")).startswith(b"503")
        except UpstreamUnreachable:
            pass

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("value", "waits"),
    [
        (b"3", 3.0),
        (b"Thu, 01 Jan 1970 00:16:44 GMT", 4.0),
        (b"1000000000", None),
        (b"-5", 0.0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
    ids=["seconds", "date", "absurd", "negative", "past"],
)
async def test_retry_after_is_heeded_up_to_a_bound(value: bytes, waits: float | None) -> None:
    busy = answer(429, [(b"retry-after", value)], b"busy")
    async with chaos_upstream(in_turn(busy, answer(body=b"ok"))) as server:
        async with fleet(UpstreamSpec(server.url), wall=1000.0) as (upstreams, noted):
            request = asyncio.create_task(ask(upstreams))
            if waits is None:
                assert await request == b"429 busy"
                return
            await until(lambda: bool(noted.retries))
            await settle()
            if waits:
                await advance(waits - 0.1)
                assert len(server.requests) == 1
                await advance(0.2)
            assert await request == b"200 ok"


async def test_retries_stay_within_their_budget_when_everything_fails() -> None:
    async with chaos_upstream(answer(503)) as server, fleet(UpstreamSpec(server.url)) as (upstreams, noted):
        for _ in range(60):
            upstreams.all[0].breaker.succeeded()  # else it would soon not be asked at all
            await ask(upstreams)

    assert len(server.requests) <= 60 * 1.1 + 1
    assert len(noted.retries) == len(server.requests) - 60 >= 6


async def test_an_upstream_that_refuses_is_left_alone_after_five_failures_and_tried_by_one_request_later() -> None:
    with refusing_upstream() as url:
        async with fleet(UpstreamSpec(url, name="a")) as (upstreams, noted):
            for _ in range(FAILURES - 1):
                with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
                    await ask(upstreams)
            assert upstreams.states() == {"a": BreakerState.OPEN}
            with pytest.raises(UpstreamSpared) as spared:
                await ask(upstreams)

    assert spared.value.retry_after == FIRST_PAUSE
    assert noted.failures == [("a", "unreachable")] * FAILURES


async def test_after_the_pause_one_request_tries_while_the_others_are_turned_away() -> None:
    async with chaos_upstream(hang) as server, fleet(UpstreamSpec(server.url)) as (upstreams, _):
        for _ in range(FAILURES):
            upstreams.all[0].breaker.failed(asyncio.get_running_loop().time())
        await advance(FIRST_PAUSE)
        requests = [asyncio.create_task(ask(upstreams)) for _ in range(10)]
        await until(lambda: sum(request.done() for request in requests) == 9)
        await until(lambda: len(server.requests) == 1)
        [probe] = [request for request in requests if not request.done()]
        probe.cancel()
        await asyncio.wait(requests)

        server.mode = answer(body=b"ok")
        assert await ask(upstreams) == b"200 ok"
        assert upstreams.states() == {"upstream": BreakerState.CLOSED}
    assert all(isinstance(request.exception(), UpstreamSpared) for request in requests if request is not probe)


async def test_a_request_that_cannot_be_written_leaves_the_one_try_to_the_next() -> None:
    def content(name: str | None) -> tuple[list[tuple[bytes, bytes]], bytes]:
        raise ValueError("no body")

    async with fleet(UpstreamSpec("http://127.0.0.1:1/v1")) as (upstreams, _):
        breaker = upstreams.all[0].breaker
        for _ in range(FAILURES):
            breaker.failed(asyncio.get_running_loop().time())
        await advance(FIRST_PAUSE)
        with pytest.raises(ValueError, match="no body"):
            async with upstreams.send(Outgoing("POST", CHAT, "m", content)):
                pass
        assert upstreams.available("m")


async def test_an_upstream_that_is_silent_is_not_asked_a_second_time_and_gives_its_place_back() -> None:
    async with chaos_upstream(hang) as server:
        async with fleet(UpstreamSpec(server.url, first_byte_timeout=7.0, max_connections=1)) as (upstreams, noted):
            request = asyncio.create_task(ask(upstreams))
            await until(lambda: len(server.requests) == 1)
            await settle()
            await advance(7.0)
            await until(request.done)
            with pytest.raises(UpstreamTimeout):
                await request
            await until(lambda: server.open_connections == 0)

            server.mode = answer(body=b"ok")
            assert await ask(upstreams) == b"200 ok"
    assert (noted.failures, noted.retries) == ([("upstream", "timeout")], [])


async def test_a_connection_that_is_never_accepted_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        async with fleet(UpstreamSpec(f"http://127.0.0.1:{port}/v1", connect_timeout=2.0)) as (upstreams, noted):
            request = asyncio.create_task(ask(upstreams))
            await settle()
            await advance(2.0)
            await until(request.done)
            with pytest.raises(UpstreamTimeout):
                await request
        for filler in fillers:
            filler.close()
    assert noted.failures == [("upstream", "timeout")]


async def test_a_name_that_cannot_be_looked_up_is_unreachable() -> None:
    async with fleet(UpstreamSpec("http://nowhere.invalid/v1")) as (upstreams, noted):
        with pytest.raises(UpstreamUnreachable):
            await ask(upstreams)

    assert ("upstream", "unreachable") in noted.failures


async def test_a_look_up_that_hangs_costs_one_thread_and_the_time_of_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released, looking, look_up = threading.Event(), [], socket.getaddrinfo

    def slow(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "slow.example":
            return look_up(host, *rest, **options)
        looking.append(threading.current_thread().name)
        released.wait()
        raise OSError("no answer")

    monkeypatch.setattr("proxy.transport.socket.getaddrinfo", slow)
    async with fleet(UpstreamSpec("http://slow.example/v1", connect_timeout=2.0)) as (upstreams, _):
        requests = [asyncio.create_task(ask(upstreams)) for _ in range(20)]
        await until(lambda: bool(looking))
        async with chaos_upstream(answer(body=b"ok")) as server, fleet(UpstreamSpec(server.url)) as (others, _):
            assert await ask(others) == b"200 ok", "the loop turns while a look-up hangs"
        await advance(2.0)
        await until(lambda: all(request.done() for request in requests))
        released.set()

    assert len(looking) == 1
    assert all(isinstance(request.exception(), UpstreamTimeout | UpstreamSpared) for request in requests)


async def test_what_one_upstream_fails_at_the_other_answers() -> None:
    with refusing_upstream() as url:
        async with chaos_upstream(answer(body=b"ok")) as server:
            async with fleet(UpstreamSpec(url, name="a"), UpstreamSpec(server.url, name="b")) as (upstreams, noted):
                for _ in range(12):
                    assert await ask(upstreams) == b"200 ok"

    assert len([failure for failure in noted.failures if failure[0] == "a"]) <= FAILURES


async def test_requests_are_shared_out_by_weight() -> None:
    async with chaos_upstream(answer()) as one, chaos_upstream(answer()) as other:
        specs = (UpstreamSpec(one.url, name="one", weight=3), UpstreamSpec(other.url, name="other"))
        async with fleet(*specs) as (upstreams, noted):
            for _ in range(8):
                await ask(upstreams)

    assert Counter(name for name, _ in noted.answers) == {"one": 6, "other": 2}


async def test_a_model_goes_where_it_is_served_under_the_name_it_has_there() -> None:
    async with chaos_upstream(answer()) as one, chaos_upstream(answer()) as other:
        specs = (
            UpstreamSpec(one.url, name="one", models={"small": "small"}),
            UpstreamSpec(other.url, name="other", models={"large": "gpt-5"}),
        )
        async with fleet(*specs) as (upstreams, _):
            await ask(upstreams, model="large")
            await ask(upstreams, model="small")
            with pytest.raises(NotServed):
                await ask(upstreams, model="none")

    assert [received.body for received in (*one.requests, *other.requests)] == [b"small", b"gpt-5"]


async def test_a_status_for_which_somebody_else_can_answer_is_declined() -> None:
    async with chaos_upstream(answer(404)) as server, fleet(UpstreamSpec(server.url)) as (upstreams, _):
        with pytest.raises(UpstreamDeclined) as declined:
            await ask(upstreams, decline=[404])

    assert declined.value.status == 404


async def test_a_key_that_the_upstream_refuses_is_told_to_the_operator_without_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with chaos_upstream(answer(401)) as server:
        async with fleet(UpstreamSpec(server.url, name="a", api_key="very-secret")) as (upstreams, _):
            assert (await ask(upstreams)).startswith(b"401")

    assert "does not accept the key" in caplog.text
    assert "very-secret" not in caplog.text


async def test_a_cut_in_mid_stream_counts_as_a_failure_and_is_not_asked_again() -> None:
    async with (
        chaos_upstream(cut_after(b"data: 1\n\n")) as server,
        fleet(UpstreamSpec(server.url)) as (upstreams, noted),
    ):
        with pytest.raises(UpstreamUnreachable, match="broke off"):
            await ask(upstreams)

    assert (len(server.requests), noted.failures, noted.retries) == (1, [("upstream", "unreachable")], [])


async def test_an_idle_connection_that_is_closed_under_a_request_costs_nobody_an_error() -> None:
    async def answer_then_reset_the_next(wire: Wire) -> None:
        if wire.sent:
            wire.reset()
        else:
            await answer(body=b"ok")(wire)

    async with (
        chaos_upstream(answer_then_reset_the_next) as server,
        fleet(UpstreamSpec(server.url)) as (upstreams, noted),
    ):
        for _ in range(10):
            assert await ask(upstreams) == b"200 ok"

    assert (noted.failures, noted.retries) == ([], [])
    assert len(server.wires) == 10


async def test_a_health_check_ejects_the_sick_and_takes_them_back() -> None:
    async with chaos_upstream(answer(503)) as server:
        spec = UpstreamSpec(server.url, health_path="/health", health_interval=10.0)
        async with fleet(spec) as (upstreams, _):
            watching = asyncio.create_task(upstreams.watch())
            await settle()
            for count in range(1, FAILURES + 1):
                await advance(10.0)
                await until(lambda count=count: len(server.requests) == count)  # type: ignore[misc]
                await settle()
            await until(lambda: not upstreams.available(None))

            server.mode = answer()
            await advance(10.0)
            await until(lambda: upstreams.states() == {"upstream": BreakerState.CLOSED})
            watching.cancel()
    assert server.requests[0].line == b"GET /v1/health HTTP/1.1"


async def test_a_stream_is_let_through_as_it_is() -> None:
    async with chaos_upstream(event_stream(b"data: 1\n\n", b"data: [DONE]\n\n")) as server:
        async with fleet(UpstreamSpec(server.url)) as (upstreams, noted):
            assert await ask(upstreams) == b"200 data: 1\n\ndata: [DONE]\n\n"

    assert noted.answers == [("upstream", 200)]


async def test_cuts_in_mid_stream_open_the_breaker_though_every_reply_begins_well() -> None:
    async with (
        chaos_upstream(cut_after(b"data: 1\n\n")) as server,
        fleet(UpstreamSpec(server.url)) as (upstreams, _),
    ):
        for _ in range(FAILURES):
            with pytest.raises(UpstreamUnreachable, match="broke off"):
                await ask(upstreams)
        with pytest.raises(UpstreamSpared):
            await ask(upstreams)


async def test_a_declined_answer_is_no_failure() -> None:
    async with chaos_upstream(answer(404)) as server, fleet(UpstreamSpec(server.url)) as (upstreams, noted):
        for _ in range(FAILURES + 1):
            with pytest.raises(UpstreamDeclined):
                await ask(upstreams, decline=[404])

    assert noted.failures == []
    assert len(server.requests) == FAILURES + 1


async def test_repeats_after_stale_connections_are_charged_to_the_budget() -> None:
    async def answer_once(wire: Wire) -> None:
        if wire.sent:
            wire.reset()
        else:
            await answer(body=b"ok")(wire)

    async with chaos_upstream(answer_once) as server, fleet(UpstreamSpec(server.url)) as (upstreams, _):
        for _ in range(60):
            assert await ask(upstreams) == b"200 ok"

    assert 60 < len(server.requests) <= 60 * 1.1 + 1


async def test_the_time_for_a_whole_reply_is_that_of_the_upstream_that_was_chosen() -> None:
    async with chaos_upstream(hang) as server:
        specs = (UpstreamSpec(server.url, name="quick", total_timeout=3.0), UpstreamSpec(server.url, name="patient"))
        async with fleet(*specs) as (upstreams, noted):
            request = asyncio.create_task(ask(upstreams))
            await until(lambda: len(server.requests) == 1)
            await settle()
            await advance(3.0)
            await until(request.done)
            with pytest.raises(UpstreamTimeout):
                await request
    assert noted.failures == [("quick", "timeout")]
