"""A process of our own, seen from the event loop: started, spoken to over a socket, killed and reaped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from batching.messages import LENGTH_BYTES, Head, Part, head_length
from batching.worker import Worker

_ROOT = Path(__file__).parent.parent
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[2]); from batching.child import main; main(*map(int, sys.argv[3:]))"
PROCESSES_WORK = hasattr(socket, "send_fds") and hasattr(socket, "AF_UNIX")
"""Whether this platform has what they need."""

_CHUNK_BYTES = 1 << 20  # as much is received at once before others on the loop have their turn


class ChildProcess:
    """A fresh interpreter in a session of its own that runs `batching.child`. Linux and macOS.

    The kernel kills it when the thread that made it ends, so it is made on the event loop's; that takes about 1 ms.
    limit: of a message, in bytes.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.killed = False
        self._name = name
        self._limit = limit
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        numbers = (theirs.fileno(), os.getpid(), limit)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, name, str(_ROOT), *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                self._socket.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, message: Sequence[Part], files: Sequence[int] = ()) -> None:
        """Send a packed message, with copies of open descriptors. Raises ConnectionError when the process is gone."""
        loop = asyncio.get_running_loop()
        head, *buffers = message
        sent = await self._send_first(head, files)
        for part in (memoryview(head)[sent:], *buffers):
            await loop.sock_sendall(self._socket, part)

    async def _send_first(self, head: Part, files: Sequence[int]) -> int:
        """As many bytes as there is room for, and the descriptors with them."""
        while not self.killed:  # its descriptors may be closed by now
            with suppress(BlockingIOError):
                return socket.send_fds(self._socket, [head], files)
            await self._writable()
        raise ConnectionResetError(f"{self._name}'s process was killed")

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._socket, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._socket)

    async def receive(self) -> Any:
        """The next message. Raises ConnectionError when the process is gone, ValueError for what is no message."""
        prefix = await self._exactly(LENGTH_BYTES)
        head = Head(await self._exactly(head_length(prefix, self._limit)), self._limit)
        return head.value([await self._exactly(size) for size in head.sizes])

    async def _exactly(self, size: int) -> bytearray:
        loop = asyncio.get_running_loop()
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            received = await loop.sock_recv_into(self._socket, view[:_CHUNK_BYTES])
            if not received:
                raise ConnectionResetError(f"{self._name}'s process closed the connection")
            view = view[received:]
            if received == _CHUNK_BYTES:
                await asyncio.sleep(0)
        return buffer

    def kill(self) -> None:
        """End it at once, whatever it does. `end` is still needed."""
        self.killed = True
        self._signal(signal.SIGKILL)

    async def end(self, grace: float = 0.0) -> int:
        """Wait until it is gone, and return its exit code (a signal's number, negated).

        It is asked to end if there is a `grace`, in seconds, and killed after it. Cancelling the wait kills it, too.
        """
        # The kernel tells a thread best; it lives as long as this takes.
        reaped = asyncio.ensure_future(Worker(f"{self._name} ends", idle_seconds=0).run(self._process.wait))
        try:
            if grace:
                self._signal(signal.SIGTERM)
                await asyncio.wait([reaped], timeout=grace)
        finally:
            self._signal(signal.SIGKILL)
            self._socket.close()
        return await asyncio.shield(reaped)

    def _signal(self, number: signal.Signals) -> None:
        """To it and to whatever it started."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of one that is not reaped yet
                os.killpg(self._process.pid, number)
