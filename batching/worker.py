"""The one door to a thread."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
Args = TypeVarTuple("Args")

current_requests: ContextVar[tuple[str, ...]] = ContextVar("current_requests", default=())
"""Ids of the requests that the running batch serves; read by the log filter in the worker thread."""


class Worker:
    """One model's thread: one call at a time, so an engine needs no lock. Values in, values out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._free = asyncio.Lock()
        self._limiter = CapacityLimiter(1)
        self._calls: set[asyncio.Task[object]] = set()

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args, requests: Sequence[str] = ()) -> T:
        """Call `function` in the thread, context variables carried along.

        A thread cannot be stopped. Cancelling the caller, however it is done, lets the caller go at once; a call that
        has begun runs to its end, and the next one waits for that. A call that has not begun is dropped.
        requests: ids of the requests served, for the log.
        """
        await self._free.acquire()
        token = current_requests.set(tuple(requests) or current_requests.get())
        try:
            call = asyncio.create_task(to_thread.run_sync(function, *args, limiter=self._limiter))
        finally:
            current_requests.reset(token)
        self._calls.add(call)
        call.add_done_callback(self._end)
        return await asyncio.shield(call)

    def _end(self, call: "asyncio.Task[object]") -> None:
        self._calls.discard(call)
        self._free.release()
        if not call.cancelled():
            call.exception()  # marked as seen: perhaps nobody waits for it any more
