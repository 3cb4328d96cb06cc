"""Work that ends when its client leaves, and nothing left over however it ends."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request

from gateway.disconnect import alongside, until_disconnect
from gateway.errors import ClientDisconnected
from tests.clock import settle, until
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    left_over = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in left_over if "TestRunner" not in repr(task)]


async def request_of(client: RawClient) -> Request:
    request: Request = Request(client.scope, client.receive)
    await request.body()
    return request


async def at_once() -> str:
    return "done"


async def test_finished_work_gives_its_result() -> None:
    assert await until_disconnect(await request_of(RawClient()), at_once()) == "done"


async def test_the_client_is_not_listened_to_after_the_work_is_done() -> None:
    client = RawClient()
    request = await request_of(client)
    await until_disconnect(request, at_once())
    assert client.receives == 1


async def test_a_future_can_be_waited_for_as_well() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await until_disconnect(await request_of(RawClient()), future) == 7


async def test_an_exception_of_the_work_comes_out_as_it_is() -> None:
    failure = ValueError("as it is")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise failure

    with pytest.raises(ValueError) as caught:
        await until_disconnect(await request_of(RawClient()), failing())
    assert caught.value is failure
    assert caught.value.__cause__ is None and caught.value.__context__ is None


async def test_a_client_that_leaves_cancels_the_work_and_waits_for_its_cleanup() -> None:
    client = RawClient()
    request = await request_of(client)
    steps: list[str] = []

    async def work() -> None:
        try:
            steps.append("started")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    task = asyncio.ensure_future(until_disconnect(request, work()))
    await until(lambda: steps == ["started"])
    client.leave()
    with pytest.raises(ClientDisconnected):
        await task
    assert steps == ["started", "cleaned up"]


async def test_work_is_started_even_for_a_client_that_has_left_so_that_it_can_clean_up() -> None:
    client = RawClient()
    request = await request_of(client)
    client.leave()
    steps: list[str] = []

    async def work() -> None:
        steps.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cleaned up")

    with pytest.raises(ClientDisconnected):
        await until_disconnect(request, work())
    assert steps == ["started", "cleaned up"]


async def test_a_cleanup_that_fails_is_not_hidden_behind_the_client_that_left() -> None:
    client = RawClient()
    request = await request_of(client)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("slot lost")

    client.leave()
    with pytest.raises(RuntimeError, match="slot lost"):
        await until_disconnect(request, work())


async def test_cancelling_from_outside_cancels_the_work() -> None:
    request = await request_of(RawClient())
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    task = asyncio.ensure_future(until_disconnect(request, work()))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled


async def test_leaving_and_finishing_in_the_same_turn_ends_one_way_or_the_other() -> None:
    client = RawClient()
    request = await request_of(client)
    finish = asyncio.Event()

    async def work() -> str:
        await finish.wait()
        return "done"

    task = asyncio.ensure_future(until_disconnect(request, work()))
    await settle()
    client.leave()
    finish.set()
    try:
        assert await task == "done"
    except ClientDisconnected:
        pass


async def test_companions_have_ended_when_the_work_has() -> None:
    ended = []

    async def companion(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def work() -> str:
        await settle()
        return "done"

    assert await alongside(work(), companion("a"), companion("b")) == "done"
    assert sorted(ended) == ["a", "b"]
