"""The one door to a process that can be killed: for engines whose computation nothing else would stop."""

import asyncio
import contextvars
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from batching.child_process import ChildProcess
from batching.context import current_requests
from batching.errors import ProcessBroken, ProcessDied, ShuttingDown
from batching.messages import MAX_FILES, Part, pack, rebuild_error
from batching.restarts import Restarts
from batching.stats import ProcessStats, Restart

logger = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 256 << 20


class Child(Protocol):
    """What a ProcessWorker needs of a process; `batching.child_process` has the real one."""

    @property
    def pid(self) -> int: ...

    @property
    def killed(self) -> bool: ...

    async def send(self, message: Sequence[Part], files: Sequence[int] = ()) -> None: ...

    async def receive(self) -> Any: ...

    def kill(self) -> None: ...

    async def end(self, grace: float = 0.0) -> int: ...


class ProcessCall:
    """A call that waits or runs. Its `answer` gets exactly one end."""

    def __init__(self, method: str, message: Sequence[Part], files: Sequence[BinaryIO] = ()) -> None:
        self.method = method
        self.message = message
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.files: list[int] = []
        self.answer.add_done_callback(self._close)
        try:
            for file in files:
                self.files.append(os.dup(file.fileno()))
        except BaseException:
            self.answer.cancel()
            raise

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def _close(self, answer: "asyncio.Future[Any]") -> None:
        for file in self.files:
            os.close(file)
        if not answer.cancelled():
            answer.exception()  # seen: asyncio would complain about one that nobody awaits


class ProcessWorker:
    """An object in a process of its own: one call at a time, in the order in which they came.

    factory: "package.module:function", called in the process with `arguments`, which are JSON, as keywords. Calls name
        a method of what it returns.
    errors: exceptions that come back as they are, with their arguments and fields, which must be JSON, or else as the
        nearest of their base classes here. MemoryError is always one; any other is a RuntimeError with the same text.
    max_message_bytes: of a call or an answer. grace: seconds that the process has to end by itself when this is closed.

    A call costs no thread. How many may wait is the caller's to bound. Log records of the process go through the
    loggers of the same name here, with the requests' ids.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        arguments: Mapping[str, Any],
        *,
        errors: Collection[type[Exception]] = (),
        max_message_bytes: int = _MAX_MESSAGE_BYTES,
        grace: float = 2.0,
        restarts: Restarts | None = None,
        spawn: Callable[[str, int], Child] = ChildProcess,
    ) -> None:
        self.name = name
        self.broken: str | None = None
        """Why the process is not started any more: it crashed too often. Calls raise ProcessBroken."""
        self._setup = {"factory": factory, "arguments": arguments}
        self._errors = errors
        self._limit = max_message_bytes
        self._grace = grace
        self._restarts = restarts or Restarts()
        self._spawn = spawn
        self._waiting: deque[ProcessCall] = deque()
        self._arrived = asyncio.Event()
        self._running: ProcessCall | None = None
        self._child: Child | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closed = False
        self._restarted = dict.fromkeys(Restart, 0)

    @property
    def pid(self) -> int | None:
        """Of the process that takes calls, None while there is none."""
        return self._child.pid if self._child else None

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return len(self._waiting)

    def stats(self) -> ProcessStats:
        return ProcessStats(self._child is not None, dict(self._restarted), self.broken)

    async def start(self) -> None:
        """Once. Return when the factory has. Raises what it raised, by kind, ProcessDied or ShuttingDown.

        Cancelling kills the process.
        """
        child = await self._launch()
        if self._closed:
            await self.aclose()
            raise ShuttingDown(f"{self.name} was stopped")
        self._supervisor = asyncio.create_task(self._supervise(child), name=f"{self.name} supervisor")

    async def call(
        self,
        method: str,
        *arguments: object,
        files: Sequence[BinaryIO] = (),
        requests: Sequence[str] = (),
        patience: float = 0.0,
    ) -> Any:
        """The method's value. Arguments and value are JSON, numpy arrays of numbers and bytes, in lists and objects.

        Arrays are not copied here: leave them alone until the answer is there. files: open ones, which the method gets
        as its keyword `files`, at a position that both sides share. requests: ids of the requests served, for the log.

        Cancelling a call that has not begun withdraws it. Cancelling one that runs kills the process, at once or, if it
        has not ended by then, after the seconds of `patience`; another one is started, and the calls that wait run
        there.

        Raises what the method raised, by kind, ProcessDied when the process did, ProcessBroken, ShuttingDown,
        TypeError for what cannot be sent, and MessageTooLarge.
        """
        call = self.submit(method, *arguments, files=files, requests=requests)
        try:
            return await asyncio.shield(call.answer)
        finally:
            self.kill(call, patience)

    def submit(
        self, method: str, *arguments: object, files: Sequence[BinaryIO] = (), requests: Sequence[str] = ()
    ) -> ProcessCall:
        """As `call`, for who awaits `answer` later. It runs to its end unless it is killed."""
        if self._closed or self._supervisor is None:
            raise ShuttingDown(f"{self.name} is not running")
        if self.broken is not None:
            raise ProcessBroken(self.broken)
        if len(files) > MAX_FILES:
            raise ValueError(f"{len(files)} files go with one call, of at most {MAX_FILES}")
        served = requests or current_requests.get()
        message = pack({"method": method, "arguments": arguments, "requests": served}, self._limit)
        call = ProcessCall(method, message, files)
        self._waiting.append(call)
        self._arrived.set()
        return call

    def kill(self, call: ProcessCall, patience: float = 0.0) -> None:
        """End a call without an answer: ProcessDied for who still awaits it. One that has its answer is left alone.

        patience: seconds that it gets if it has begun.
        """
        if call.answer.done():
            return
        if call in self._waiting:
            self._waiting.remove(call)
        elif patience:
            asyncio.get_running_loop().call_later(patience, self.kill, call)
            return
        elif call is self._running and self._child:
            self._child.kill()
        call.fail(ProcessDied(f"{self.name}: the call was killed"))

    async def aclose(self) -> None:
        """End the process; calls that have no answer yet raise ShuttingDown."""
        self._closed = True
        self._fail_all(ShuttingDown(f"{self.name} was stopped"))
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if child := self._child:
            self._child = None
            await child.end(self._grace)

    async def _launch(self) -> Child:
        """A process whose factory has returned."""
        child = self._spawn(self.name, self._limit)
        try:
            await child.send(pack({**self._setup, "path": sys.path, "levels": _levels()}, self._limit))
            self._value(await _next_answer(child))
        except ConnectionError:
            code = await child.end()
            raise ProcessDied(f"{self.name}: its process ended ({_how(code)}) while it started") from None
        except BaseException:
            await child.end()
            raise
        self._child = child
        return child

    async def _supervise(self, child: Child | None) -> None:
        while child:
            await self._serve(child)
            if self._closed:
                return  # where both happen at once, the group has told of the process's end only
            self._child = None
            code = await child.end()
            reason = Restart.KILLED if child.killed else Restart.CRASHED
            child = await self._relaunch(self._bury(child, code), reason)

    async def _serve(self, child: Child) -> None:
        """Make calls until the process is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._make_calls(child))
                tasks.create_task(self._take_answers(child))
        except* ConnectionError:
            pass  # of which `_bury` tells
        except* Exception:  # whatever it is, another process can do better, and no call may hang
            logger.exception("%s: lost touch with its process", self.name)

    async def _make_calls(self, child: Child) -> None:
        while not child.killed:
            self._running = None
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            self._running = call = self._waiting.popleft()
            try:
                await child.send(call.message, call.files)
            except ConnectionError:
                return  # the other task still reads what the process had to say
            await asyncio.wait([call.answer])

    async def _take_answers(self, child: Child) -> None:
        while True:
            message = await _next_answer(child)
            if child.killed:
                continue  # a moment too late
            assert self._running, "an answer without a call"
            self._restarts.answered()
            try:
                self._running.answer.set_result(self._value(message))
            except Exception as error:  # noqa: BLE001 - the caller's, whatever it is
                self._running.fail(error)

    def _value(self, message: Mapping[str, Any]) -> Any:
        if message["kind"] == "error":
            raise rebuild_error(message["error"], self._errors)
        return message["value"]

    def _bury(self, child: Child, code: int) -> float | None:
        """Answer the call that ran in a process that is gone. Returns the seconds until the next start; None: never."""
        call, self._running = self._running, None
        if child.killed:
            logger.info("%s: its process was killed with the call that it ran", self.name)
            return 0.0
        doing = f"while it ran {call.method!r}" if call else "while it waited"
        logger.error("%s: its process ended (%s) %s", self.name, _how(code), doing)
        if call:
            call.fail(ProcessDied(f"{self.name}: its process ended ({_how(code)}) {doing}"))
        return self._restarts.crashed(asyncio.get_running_loop().time())

    async def _relaunch(self, pause: float | None, reason: Restart) -> Child | None:
        while pause is not None:
            self._restarted[reason] += 1
            await asyncio.sleep(pause)
            try:
                child = await self._launch()
            except Exception:  # a start that fails is a crash, whatever the reason
                logger.exception("%s: its process could not be started again", self.name)
                pause = self._restarts.failed_to_start(asyncio.get_running_loop().time())
                reason = Restart.CRASHED
            else:
                self._restarts.started()
                return child
        self.broken = f"{self.name}: its process ended {self._restarts.most} times in a row"
        logger.error("%s; it is not started again", self.broken)
        self._fail_all(ProcessBroken(self.broken))
        return None

    def _fail_all(self, error: Exception) -> None:
        for call in (self._running, *self._waiting):
            if call:
                call.fail(error)
        self._waiting.clear()


async def _next_answer(child: Child) -> Mapping[str, Any]:
    """The next message that is no log record; those are logged."""
    while True:
        message: Mapping[str, Any] = await child.receive()
        if message["kind"] != "log":
            return message
        context = contextvars.copy_context()
        context.run(current_requests.set, tuple(message["requests"]))
        context.run(_log, message["record"])


def _log(fields: Mapping[str, Any]) -> None:
    record = logging.makeLogRecord(dict(fields))
    target = logging.getLogger(record.name)
    if target.isEnabledFor(record.levelno):
        target.handle(record)


def _levels() -> dict[str, int]:
    """What every logger here is set to, by name; the root's is "root"."""
    named = logging.root.manager.loggerDict.items()
    levels = {name: log.level for name, log in named if isinstance(log, logging.Logger) and log.level}
    return {"root": logging.root.level, **levels}


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
