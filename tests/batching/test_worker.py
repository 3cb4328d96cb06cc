"""The one door to a thread."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import anyio
import pytest

from batching.context import current_requests
from batching.worker import Worker
from tests.batching.fakes import Latch
from tests.clock import settle, until

pytestmark = pytest.mark.anyio

color: ContextVar[str] = ContextVar("color", default="none")


async def test_the_work_happens_in_another_thread_and_its_value_comes_back() -> None:
    assert await Worker("model").run(lambda number: (number, threading.get_ident()), 1) != (1, threading.get_ident())
    assert await Worker("model").run(max, 1, 2) == 2


async def test_what_the_work_raises_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await Worker("model").run(lambda: 1 // 0)


async def test_context_variables_are_carried_along() -> None:
    color.set("blue")
    assert await Worker("model").run(color.get) == "blue"


async def test_one_call_at_a_time() -> None:
    worker, latch = Worker("model"), Latch(closed=True)
    calls = [asyncio.create_task(worker.run(latch.wait)) for _ in range(3)]
    for arrived in (1, 2, 3):
        await until(lambda: latch.arrived >= arrived)  # noqa: B023  called at once
        await settle()
        assert latch.arrived == arrived
        latch.let_through()
    await asyncio.gather(*calls)


async def test_all_calls_are_made_in_the_same_thread() -> None:
    worker = Worker("model", idle_seconds=60)
    assert len({await worker.run(threading.get_ident) for _ in range(5)}) == 1


async def test_a_thread_without_work_ends_and_another_takes_the_next_call() -> None:
    worker = Worker("model", idle_seconds=0)
    thread = await worker.run(threading.current_thread)
    assert (thread.name, thread.daemon) == ("model", True)
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert await worker.run(max, 1, 2) == 2


async def test_no_call_is_lost_between_two_threads() -> None:
    worker = Worker("model", idle_seconds=0)
    assert [await worker.run(int, number) for number in range(300)] == list(range(300))


async def test_an_iterator_that_ends_inside_is_an_error_outside() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await Worker("model").run(next, iter(()))


def test_a_call_that_outlives_its_loop_harms_nobody() -> None:
    worker, latch = Worker("model"), Latch(closed=True)

    async def begin() -> None:
        call = asyncio.create_task(worker.run(latch.wait))
        await until(lambda: latch.arrived == 1)
        call.cancel()

    asyncio.run(begin())
    latch.open()
    assert asyncio.run(worker.run(max, 1, 2)) == 2


async def test_two_models_work_side_by_side() -> None:
    latch = Latch(closed=True)
    calls = [asyncio.create_task(Worker(name).run(latch.wait)) for name in ("one", "other")]
    await until(lambda: latch.arrived == 2)
    latch.open()
    await asyncio.gather(*calls)


async def cancel_by_scope(worker: Worker, latch: Latch) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run, latch.wait)
        await until(lambda: latch.arrived == 1)
        tasks.cancel_scope.cancel()


async def cancel_by_task(worker: Worker, latch: Latch) -> None:
    task = asyncio.create_task(worker.run(latch.wait))
    await until(lambda: latch.arrived == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cancel", [cancel_by_scope, cancel_by_task])
async def test_who_is_cancelled_goes_at_once_and_the_next_call_still_waits_for_the_thread(
    cancel: Callable[[Worker, Latch], Awaitable[None]],
) -> None:
    worker, latch = Worker("model"), Latch(closed=True)
    await cancel(worker, latch)
    following = asyncio.create_task(worker.run(latch.wait))
    await settle()
    assert latch.arrived == 1
    latch.let_through(2)
    await following
    assert latch.arrived == 2


async def test_an_error_that_nobody_waits_for_any_more_is_not_complained_about() -> None:
    worker, latch, complaints = Worker("model"), Latch(closed=True), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def fail() -> None:
        latch.wait()
        raise ValueError

    task = asyncio.create_task(worker.run(fail))
    await until(lambda: latch.arrived == 1)
    task.cancel()
    latch.open()
    await worker.run(int)
    gc.collect()
    assert complaints == []


async def test_a_call_that_has_not_begun_is_withdrawn() -> None:
    worker, latch = Worker("model"), Latch(closed=True)
    running = asyncio.create_task(worker.run(latch.wait))
    await until(lambda: latch.arrived == 1)
    with anyio.move_on_after(0):
        await worker.run(latch.wait)
    latch.open()
    await running
    assert latch.arrived == 1


async def test_the_thread_knows_which_requests_it_serves() -> None:
    worker = Worker("model")
    assert await worker.run(current_requests.get, requests=["req-1", "req-2"]) == ("req-1", "req-2")
    assert current_requests.get() == ()
    assert await worker.run(current_requests.get) == ()
