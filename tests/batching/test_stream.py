"""The token stream between the batch loop and its reader."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import anyio
import pytest

from batching.errors import DeadlineExceeded, EngineFailed, ShuttingDown
from batching.job import Caller, Job
from batching.stats import Outcome
from batching.stream import StreamGroup, TokenStream
from tests.batching.fakes import ANYONE
from tests.clock import advance, settle

pytestmark = pytest.mark.anyio

Stream = TokenStream[str, str]


def stream_of(caller: Caller = ANYONE, closed: "list[Stream] | None" = None) -> Stream:
    return TokenStream(0, Job("prompt", caller), into([] if closed is None else closed))


def into(closed: list[Stream]) -> Callable[[Stream, Outcome], None]:
    return lambda stream, outcome: closed.append(stream)


async def test_what_is_unread_is_read_in_one_piece() -> None:
    stream = stream_of()
    stream.push("a")
    stream.push("b")
    assert await stream.read() == ["a", "b"]
    stream.push("c")
    assert await stream.read() == ["c"]
    assert stream.generated == ["a", "b", "c"]


async def test_a_reader_waits_for_the_next_token() -> None:
    stream = stream_of()
    reading = asyncio.create_task(stream.read())
    await settle()
    assert not reading.done()
    stream.push("a")
    assert await reading == ["a"]


async def test_the_end_is_told_after_the_last_token_and_again_when_asked_again() -> None:
    stream = stream_of()
    stream.push("a")
    stream.finish("stop")
    assert [await stream.read() for _ in range(3)] == [["a"], [], []]
    assert stream.finish_reason == "stop"


async def test_a_waiting_reader_is_told_the_end() -> None:
    stream = stream_of()
    reading = asyncio.create_task(stream.read())
    await settle()
    stream.finish("length")
    assert await reading == []


async def test_an_error_is_raised_after_the_tokens_before_it_were_read() -> None:
    stream = stream_of()
    stream.push("a")
    stream.fail(EngineFailed())
    assert await stream.read() == ["a"]
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await stream.read()


async def test_a_stream_ends_once() -> None:
    finished, failed = stream_of(), stream_of()
    finished.finish("stop")
    finished.fail(ShuttingDown())
    finished.finish("length")
    assert (await finished.read(), finished.finish_reason) == ([], "stop")
    failed.fail(EngineFailed())
    failed.fail(ShuttingDown())
    failed.finish("stop")
    assert failed.finish_reason is None
    with pytest.raises(EngineFailed):
        await failed.read()


async def test_a_reader_waits_until_the_deadline() -> None:
    stream = stream_of(Caller(deadline=anyio.current_time() + 5.0))
    reading = asyncio.create_task(stream.read())
    await settle()
    await advance(4.9)
    assert not reading.done()
    await advance(0.1)
    with pytest.raises(DeadlineExceeded):
        reading.result()


async def test_tokens_that_came_before_the_deadline_are_still_read_after_it() -> None:
    stream = stream_of(Caller(deadline=anyio.current_time() + 5.0))
    stream.push("a")
    await advance(6.0)
    assert await stream.read() == ["a"]
    with pytest.raises(DeadlineExceeded):
        await stream.read()


async def test_an_answer_that_was_complete_before_the_deadline_is_complete_after_it() -> None:
    stream = stream_of(Caller(deadline=anyio.current_time() + 5.0))
    stream.push("a")
    stream.finish("stop")
    await advance(6.0)
    assert [await stream.read(), await stream.read()] == [["a"], []]


async def test_leaving_the_block_closes_the_stream_and_marks_the_job() -> None:
    closed: list[Stream] = []
    stream = stream_of(closed=closed)
    async with stream as entered:
        assert entered is stream
        assert not stream.job.cancel.cancelled
    assert stream.job.cancel.cancelled
    assert closed == [stream]


async def test_a_reader_that_is_cancelled_closes_the_stream() -> None:
    closed: list[Stream] = []
    stream = stream_of(closed=closed)

    async def read() -> None:
        async with stream:
            await stream.read()

    reading = asyncio.create_task(read())
    await settle()
    reading.cancel()
    await settle()
    assert closed == [stream]


# Several streams of one request


class Group:
    """Streams of one request, and what a reader of all of them was given."""

    def __init__(self, size: int, caller: Caller = ANYONE) -> None:
        arrived = asyncio.Event()
        self.closed: list[Stream] = []
        self.streams = [TokenStream(i, Job("prompt", caller), into(self.closed), arrived) for i in range(size)]
        self.group = StreamGroup(self.streams, arrived)
        self.pieces: list[tuple[int, list[str]]] = []

    async def read(self) -> None:
        async with self.group, aclosing(self.group.read()) as pieces:
            async for i, tokens in pieces:
                self.pieces.append((i, list(tokens)))


async def test_tokens_of_a_group_come_as_they_arrive_with_the_number_of_their_stream() -> None:
    group = Group(2)
    reading = asyncio.create_task(group.read())
    await settle()
    group.streams[1].push("a")
    await settle()
    group.streams[0].push("b")
    group.streams[1].push("c")
    group.streams[1].push("d")
    await settle()
    assert group.pieces == [(1, ["a"]), (0, ["b"]), (1, ["c", "d"])]
    assert not reading.done()
    reading.cancel()


async def test_a_group_ends_with_the_last_of_its_streams() -> None:
    group = Group(2)
    reading = asyncio.create_task(group.read())
    group.streams[0].finish("stop")
    await settle()
    assert group.pieces == [(0, [])]
    assert not reading.done()
    group.streams[1].push("a")
    group.streams[1].finish("length")
    await reading
    assert group.pieces == [(0, []), (1, ["a"]), (1, [])]


async def test_the_error_of_one_stream_ends_the_reading_and_closes_all() -> None:
    group = Group(3)
    group.streams[0].push("a")
    group.streams[1].fail(EngineFailed())
    with pytest.raises(EngineFailed):
        await group.read()
    assert group.pieces == [(0, ["a"])]
    assert group.closed == group.streams


async def test_a_stream_that_its_reader_closes_is_not_read_any_further() -> None:
    group = Group(2)
    read = group.group.read()
    for stream in group.streams:
        stream.push("a")
    assert await anext(read) == (0, ["a"])
    group.streams[0].close()
    group.streams[0].push("late")
    assert await anext(read) == (1, ["a"])
    group.streams[1].finish("stop")
    assert [piece async for piece in read] == [(1, [])]


async def test_a_group_waits_until_the_deadline() -> None:
    group = Group(2, Caller(deadline=anyio.current_time() + 5.0))
    reading = asyncio.create_task(group.read())
    await settle()
    group.streams[1].push("a")
    await advance(4.9)
    assert (group.pieces, reading.done()) == ([(1, ["a"])], False)
    await advance(0.1)
    with pytest.raises(DeadlineExceeded):
        reading.result()
    assert group.closed == group.streams


async def test_what_came_before_the_deadline_is_read_after_it() -> None:
    group = Group(2, Caller(deadline=anyio.current_time() + 5.0))
    group.streams[1].push("a")
    group.streams[1].finish("stop")
    await advance(6.0)
    with pytest.raises(DeadlineExceeded):
        await group.read()
    assert group.pieces[0] == (1, ["a"])


async def test_a_reader_of_a_group_that_is_cancelled_closes_every_stream() -> None:
    group = Group(3)
    reading = asyncio.create_task(group.read())
    await settle()
    reading.cancel()
    await settle()
    assert group.closed == group.streams
    assert all(stream.job.cancel.cancelled for stream in group.streams)
