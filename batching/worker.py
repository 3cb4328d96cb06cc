"""The one door to a thread."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple, Unpack

from batching.context import current_requests

T = TypeVar("T")
Args = TypeVarTuple("Args")

_IDLE_SECONDS = 0.1


class Worker:
    """One model's thread: one call at a time, so an engine needs no lock. Values in, values out.

    The thread ends when there was nothing to do for `idle_seconds`, and comes back with the next call: each thread that
    computes has a pool of threads of its own, and as long as all of them are more than the cores, OpenMP puts each to
    sleep after every operation (libgomp's `gomp_throttled_spin_count_var`), which halves the speed of the one at work.
    It is a daemon: no call, however long, keeps the process from ending.
    """

    def __init__(self, name: str, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self.name = name
        self._idle_seconds = idle_seconds
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._has_thread = False

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args, requests: Sequence[str] = ()) -> T:
        """Call `function` in the thread, context variables carried along.

        A thread cannot be stopped. Cancelling the caller, however it is done, lets the caller go at once; a call that
        has begun runs to its end, and the next one waits for that. A call that has not begun is dropped.
        requests: ids of the requests served, for the log.
        """
        context = contextvars.copy_context()
        if requests:
            context.run(current_requests.set, tuple(requests))
        call = _Call(lambda: context.run(function, *args))
        self._submit(call)
        result: T = await call.outcome
        return result

    def _submit(self, call: "_Call") -> None:
        with self._lock:
            self._calls.put(call)
            if not self._has_thread:
                self._has_thread = True
                threading.Thread(target=self._make_calls, name=self.name, daemon=True).start()

    def _make_calls(self) -> None:
        """The thread. What is put when the time is just over finds it still there, or the next one."""
        while True:
            try:
                self._calls.get(timeout=self._idle_seconds).make()
            except queue.Empty:
                with self._lock:
                    if self._calls.empty():
                        self._has_thread = False
                        return


class _Call:
    """A call on its way into the thread, and its outcome on the way back."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()

    def make(self) -> None:
        """In the thread."""
        if self.outcome.cancelled():
            return
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
            self._deliver(self._fail, error)
        else:
            self._deliver(self._finish, result)

    def _deliver(self, take: Callable[[Any], None], outcome: object) -> None:
        try:
            self._loop.call_soon_threadsafe(take, outcome)
        except RuntimeError:
            if not self._loop.is_closed():  # nobody is there to be told
                raise

    def _finish(self, result: object) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if self.outcome.done():
            return
        if isinstance(error, StopIteration):  # a future takes none: whoever awaits it would end instead of fail
            error = RuntimeError("StopIteration was raised")
        self.outcome.set_exception(error)
