"""A worker in a process that can be killed: real processes, on a clock that stands still."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import numpy as np
import pytest

from batching.child_process import ChildProcess
from batching.context import current_requests
from batching.errors import EngineFailed, ProcessBroken, ProcessDied, ShuttingDown
from batching.messages import MessageTooLarge, pack
from batching.process import ProcessWorker
from tests.batching.child_latch import ChildLatch
from tests.batching.in_child import Refused
from tests.clock import advance, has_timer, settle, until

pytestmark = pytest.mark.anyio

FACTORY = "tests.batching.in_child:create"
LIMIT = 1 << 22


@pytest.fixture
def latch(tmp_path: Path) -> Iterator[ChildLatch]:
    latch = ChildLatch(tmp_path / "latch")
    yield latch
    latch.close()


@asynccontextmanager
async def running(latch: ChildLatch | None = None, **arguments: Any) -> AsyncIterator[ProcessWorker]:
    path = latch.path if latch else None
    worker = ProcessWorker(
        "model", FACTORY, {"latch": path, **arguments}, errors=[Refused], max_message_bytes=LIMIT, grace=1.0
    )
    await worker.start()
    try:
        if latch:
            await latch.connected()
        yield worker
    finally:
        await worker.aclose()


def begin(worker: ProcessWorker, method: str, *arguments: object) -> asyncio.Task[Any]:
    return asyncio.create_task(worker.call(method, *arguments))


def opened(path: str | Path) -> BinaryIO:
    return open(path, "rb")


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # a zombie can still be signalled
    except ProcessLookupError:
        return False
    return True


async def test_the_call_happens_in_another_process_and_its_value_comes_back() -> None:
    async with running() as worker:
        assert await worker.call("pid") == worker.pid != os.getpid()
        assert await worker.call("echo", {"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}


async def test_large_arrays_travel_both_ways() -> None:
    array = np.random.default_rng(0).standard_normal((500, 1000), np.float32)
    async with running() as worker:
        back = await worker.call("echo", [array, b"raw"])
    np.testing.assert_array_equal(back[0], array)
    assert back[1] == b"raw"


async def test_an_open_file_goes_along_without_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"abcdef")
    async with running() as worker:
        before = await worker.call("descriptors")
        ours = len(os.listdir("/dev/fd"))
        for _ in range(3):
            with opened(tmp_path / "upload") as one, opened(tmp_path / "upload") as other:
                other.seek(3)
                call = worker.submit("read", files=[one, other])
            assert await call.answer == [b"abcdef", b"def"]
        assert await worker.call("descriptors") == before
        assert len(os.listdir("/dev/fd")) == ours


async def test_files_that_are_closed_or_too_many_are_refused_and_none_stays_open(tmp_path: Path) -> None:
    async with running() as worker:
        ours = len(os.listdir("/dev/fd"))
        with opened(os.devnull) as file, opened(os.devnull) as closed:
            closed.close()
            with pytest.raises(ValueError, match="closed file"):
                await worker.call("read", files=[file, closed])
            with pytest.raises(ValueError, match="at most 16"):
                await worker.call("read", files=[file] * 17)
        await settle()
        assert len(os.listdir("/dev/fd")) == ours


async def test_errors_come_back_by_kind() -> None:
    async with running() as worker:
        for more in (False, True):
            with pytest.raises(Refused, match="no") as refused:
                await worker.call("refuse", more)
            assert (type(refused.value), refused.value.param) == (Refused, "file")
        with pytest.raises(MemoryError):
            await worker.call("fail", "MemoryError")
        with pytest.raises(RuntimeError, match="^KeyError: 'gone'$") as failed:
            await worker.call("fail", "KeyError")
        assert "in_child.py" in str(failed.value.__cause__)
        with pytest.raises(RuntimeError, match="SystemExit: gone"):
            await worker.call("fail", "SystemExit")
        with pytest.raises(RuntimeError, match="AttributeError"):
            await worker.call("no_such_method")
        assert await worker.call("pid") == worker.pid


async def test_what_cannot_be_sent_fails_its_call_only() -> None:
    async with running() as worker:
        with pytest.raises(TypeError, match="not JSON serializable: object"):
            await worker.call("echo", object())
        with pytest.raises(MessageTooLarge):
            await worker.call("echo", bytes(LIMIT))
        with pytest.raises(RuntimeError, match="not JSON serializable: object"):
            await worker.call("unsendable")
        with pytest.raises(RuntimeError, match="MessageTooLarge"):
            await worker.call("large", LIMIT)
        assert await worker.call("pid") == worker.pid


async def test_log_records_come_with_the_ids_of_their_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[str, ...]] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append(current_requests.get())
        return True

    caplog.handler.addFilter(note)
    async with running() as worker:
        caplog.clear()
        seen.clear()
        assert await worker.call("log", "this", requests=["req-1", "req-2"]) == ["req-1", "req-2"]
    said, failed = caplog.records[:2]
    assert (said.name, said.levelname, said.getMessage()) == ("handlers.in_child", "WARNING", "said this")
    assert said.__dict__["seconds"] == 1.5
    assert said.process != os.getpid()
    assert "ValueError: inside" in (failed.exc_text or "")
    assert seen[:2] == [("req-1", "req-2")] * 2
    assert current_requests.get() == ()


async def test_a_factory_that_refuses_says_so_to_who_starts_it() -> None:
    worker = ProcessWorker("model", FACTORY, {"refuse": True}, errors=[Refused])
    with pytest.raises(Refused, match="model m: there is nothing here") as refused:
        await worker.start()
    assert refused.value.param == "model"
    with pytest.raises(ShuttingDown):
        await worker.call("pid")
    await worker.aclose()


@pytest.mark.parametrize("factory", ["tests.batching.nowhere:create", "tests.batching.in_child:nothing"])
async def test_a_factory_that_is_not_there_is_an_error_at_the_start(factory: str) -> None:
    with pytest.raises(RuntimeError, match=r"ModuleNotFoundError|AttributeError"):
        await ProcessWorker("model", factory, {}).start()


async def test_a_process_that_dies_while_it_starts_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    with pytest.raises(ProcessDied, match=r"exit code 3\) while it started"):
        await ProcessWorker("model", FACTORY, {"crash_if": str(tmp_path / "crash")}).start()


async def test_one_call_at_a_time_in_the_order_in_which_they_came(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        calls = [begin(worker, "wait", name) for name in "abc"]
        for name in "abc":
            assert await latch.begun() == name
            latch.let_through()
        assert await asyncio.gather(*calls) == ["a", "b", "c"]


async def test_killing_a_running_call_frees_the_processor_at_once_and_keeps_those_that_wait(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        first = worker.pid
        calls = [begin(worker, "wait", name) for name in "abc"]
        assert await latch.begun() == "a"
        calls[0].cancel()
        await latch.ended()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        await latch.connected()
        for name in "bc":
            assert await latch.begun() == name
            latch.let_through()
        assert await asyncio.gather(*calls[1:]) == ["b", "c"]
        assert worker.pid != first


async def test_a_call_is_killed_also_while_native_code_holds_the_interpreter(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.call, "wait_holding_the_lock")
                assert await latch.begun() == "holding"
                scope.cancel()
        await latch.ended()
        await latch.connected()
        assert await worker.call("echo", 1) == 1


async def test_who_holds_the_call_can_kill_it(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        one, other = worker.submit("wait", "one"), worker.submit("wait", "other")
        assert await latch.begun() == "one"
        worker.kill(other)
        worker.kill(one)
        for call in (one, other):
            with pytest.raises(ProcessDied, match="killed"):
                await call.answer
        await latch.connected()
        answered = worker.submit("echo", 2)
        assert await answered.answer == 2
        pid = worker.pid
        worker.kill(answered)
        assert await worker.call("pid") == pid


async def test_a_call_that_has_not_begun_is_withdrawn(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        pid = worker.pid
        first = begin(worker, "wait", "first")
        assert await latch.begun() == "first"
        with anyio.move_on_after(0):
            await worker.call("wait", "second")
        assert worker.waiting == 0
        latch.let_through()
        assert await first == "first"
        assert await worker.call("pid") == pid


async def test_a_patient_caller_who_leaves_lets_the_call_end(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        pid = worker.pid
        for patience in (0.3, 0.4):
            call = asyncio.create_task(worker.call("wait", "a", patience=patience))
            assert await latch.begun() == "a"
            call.cancel()
            await settle()
            latch.let_through()
            assert await worker.call("pid") == pid
        await advance(1)
        assert await worker.call("pid") == pid


async def test_the_process_is_killed_when_patience_is_over(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        call = asyncio.create_task(worker.call("wait", "a", patience=0.3))
        assert await latch.begun() == "a"
        following = begin(worker, "echo", 1)
        call.cancel()
        await until(lambda: has_timer(0.3))
        await advance(0.3)
        await latch.ended()
        await latch.connected()
        assert await following == 1


async def test_a_crash_fails_the_running_call_only(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as worker:
        crashing, following = begin(worker, "abort"), begin(worker, "echo", 1)
        with pytest.raises(ProcessDied, match=r"signal 6, Aborted\) while it ran 'abort'") as died:
            await crashing
        assert isinstance(died.value, EngineFailed)
        await settle()
        assert (worker.pid, following.done()) == (None, False)
        await advance(0.1)
        assert await following == 1
        assert worker.broken is None
    assert "its process ended (signal 6, Aborted)" in caplog.text


async def test_a_process_that_is_killed_from_outside_comes_back(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: worker.pid is None)
        await until(lambda: has_timer(0.1))
        await advance(0.1)
        await latch.connected()
        assert await worker.call("echo", 1) == 1


async def test_a_process_that_only_crashes_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crash = tmp_path / "crash"
    async with running(crash_if=str(crash)) as worker:
        crash.touch()
        with pytest.raises(ProcessDied):
            await worker.call("abort")
        waiting = begin(worker, "echo", 1)
        for pause in (0.1, 0.2, 0.4, 0.8):
            assert worker.broken is None
            await until(lambda: has_timer(pause))  # noqa: B023  called at once
            await advance(pause)
        with pytest.raises(ProcessBroken, match="model: its process ended 5 times in a row"):
            await waiting
        with pytest.raises(ProcessBroken):
            await worker.call("echo", 1)
        assert worker.broken == "model: its process ended 5 times in a row"
    assert "could not be started again" in caplog.text


async def test_closing_ends_the_process_and_answers_every_call(latch: ChildLatch) -> None:
    async with running(latch) as worker:
        pid = worker.pid or 0
        calls = [begin(worker, "wait", name) for name in "ab"]
        assert await latch.begun() == "a"
        await worker.aclose()
        for call in calls:
            with pytest.raises(ShuttingDown):
                await call
        assert not exists(pid)
        with pytest.raises(ShuttingDown):
            await worker.call("pid")


async def test_closing_right_after_the_start_leaves_no_process() -> None:
    worker = ProcessWorker("model", FACTORY, {})
    await worker.start()
    pid = worker.pid
    await worker.aclose()
    assert pid
    assert not exists(pid)
    assert worker.pid is None


async def test_a_process_that_does_not_end_when_asked_is_killed_after_the_grace() -> None:
    async with running() as worker:
        pid = worker.pid or 0
        await worker.call("ignore_sigterm")
        closing = asyncio.create_task(worker.aclose())
        await until(lambda: has_timer(1.0))
        assert exists(pid)
        await advance(1.0)
        await closing
        assert not exists(pid)


async def test_closing_while_it_starts_leaves_no_process(latch: ChildLatch) -> None:
    worker = ProcessWorker("model", FACTORY, {"latch": latch.path})
    starting = asyncio.create_task(worker.start())
    await latch.connected()
    await worker.aclose()
    with pytest.raises(ShuttingDown):
        await starting
    await latch.ended()


async def test_cancelling_the_start_leaves_no_process(latch: ChildLatch) -> None:
    starting = asyncio.create_task(ProcessWorker("model", FACTORY, {"latch": latch.path}).start())
    await latch.connected()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await latch.ended()


async def test_fifty_kills_leave_no_process_descriptor_or_thread(latch: ChildLatch) -> None:
    threads, pids = threading.active_count(), []
    async with running(latch) as worker:
        descriptors = len(os.listdir("/dev/fd"))
        for _ in range(50):
            call = begin(worker, "wait", "a")
            assert await latch.begun() == "a"
            pids.append(worker.pid or 0)
            call.cancel()
            await latch.connected()
        assert await worker.call("echo", 1) == 1
        assert len(os.listdir("/dev/fd")) == descriptors
        assert len(set(pids)) == 50
        assert not any(map(exists, pids))
    await until(lambda: threading.active_count() == threads)


async def test_a_child_speaks_only_to_whom_it_is_told_and_never_hears_the_terminal() -> None:
    child = ChildProcess("model", LIMIT)
    try:
        assert os.getsid(child.pid) == child.pid
    finally:
        assert await child.end() == -signal.SIGKILL


PARENT = """
import asyncio, sys
from batching.process import ProcessWorker

async def main():
    worker = ProcessWorker("model", sys.argv[1], {"latch": sys.argv[2]})
    await worker.start()
    await worker.call(sys.argv[3], *sys.argv[4:])

asyncio.run(main())
"""


def parent_of(latch: ChildLatch, call: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PARENT, FACTORY, latch.path, *call])


@pytest.mark.parametrize(
    ("call", "begun"),
    [
        (["wait", "busy"], "busy"),
        pytest.param(
            ["wait_holding_the_lock"],
            "holding",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG"),
        ),
    ],
)
async def test_a_parent_that_is_killed_takes_its_child_along(latch: ChildLatch, call: list[str], begun: str) -> None:
    parent = parent_of(latch, call)
    try:
        await latch.connected()
        assert await latch.begun() == begun
    finally:
        parent.kill()
        parent.wait()
    await latch.ended()


CHILD = "import sys; from batching.child import main; main(*map(int, sys.argv[1:]))"


def child_of(parent: int) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    with theirs:
        numbers = map(str, (theirs.fileno(), parent, LIMIT))
        return ours, subprocess.Popen([sys.executable, "-c", CHILD, *numbers], pass_fds=[theirs.fileno()])


async def test_a_child_ends_in_the_middle_of_a_call_when_its_socket_is_closed(latch: ChildLatch) -> None:
    ours, process = child_of(os.getpid())
    with process, ours:
        setup = {"path": sys.path, "levels": {}, "factory": FACTORY, "arguments": {"latch": latch.path}}
        call = {"method": "wait", "arguments": ["a"], "requests": []}
        for message in (setup, call):
            ours.sendall(b"".join(pack(message, LIMIT)))
        await latch.connected()
        assert await latch.begun() == "a"
        ours.close()
        assert process.wait() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket tells")
def test_a_child_whose_parent_is_gone_before_it_looked_ends() -> None:
    ours, process = child_of(parent=os.getppid())
    with process, ours:
        assert process.wait() == 1
