"""Where calls in a process of their own wait until a test lets them go on."""

import asyncio
import socket
from pathlib import Path


class ChildLatch:
    """A socket that the process connects to; it says there what it begins, and waits for a byte."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(100)
        self._listener.setblocking(False)
        self._child: socket.socket | None = None

    async def connected(self) -> None:
        """The next process is there."""
        self.close_child()
        self._child, _ = await asyncio.get_running_loop().sock_accept(self._listener)

    async def begun(self) -> str:
        """What `wait` was called with."""
        assert self._child
        return (await asyncio.get_running_loop().sock_recv(self._child, 100)).decode().strip()

    async def ended(self) -> None:
        """The process is gone."""
        assert await self.begun() == ""

    def let_through(self) -> None:
        assert self._child
        self._child.send(b"!")

    def close_child(self) -> None:
        if self._child:
            self._child.close()

    def close(self) -> None:
        self.close_child()
        self._listener.close()
