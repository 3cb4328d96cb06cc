"""A multipart form that is passed on as it comes, after the name of its model has been found in it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from proxy.errors import NoRoom

IN_MEMORY = 1024 * 1024  # bytes of an upload; what must be kept beyond that lies on disk

T = TypeVar("T")

_PIECE = 64 * 1024
_DISK = CapacityLimiter(4)  # threads of this module's own
_MAX_PART_HEAD = 16 * 1024
_MAX_NAME = 4 * 1024
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_FIELD = re.compile(rb'content-disposition:[^\r\n]*;[ \t]*name=(?:"([^"\r\n]*)"|([^\s;]+))', re.IGNORECASE)
_FILE = re.compile(rb";[ \t]*filename", re.IGNORECASE)


def is_form(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/form-data")


class ModelField:
    """Finds the field `model` in a form that it is fed piece by piece.

    done: nothing more will be found out. value: what the field holds, None if it has not been found. span: where in the
    form, in bytes.
    """

    def __init__(self, content_type: str) -> None:
        boundary = _BOUNDARY.search(content_type)
        self.done = boundary is None
        self.value: bytes | None = None
        self.span = (0, 0)
        self._delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1") if boundary else b""
        # The first boundary has no line break of its own.
        self._buffer = b"\r\n"
        self._offset = -2
        self._find = self._find_part

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while not self.done and self._find():
            pass

    def _find_part(self) -> bool:
        """Whether there is more to be found in what has been fed; so the other two."""
        at = self._buffer.find(self._delimiter)
        if at < 0:
            self._drop(max(0, len(self._buffer) - len(self._delimiter) + 1))
            return False
        self._drop(at + len(self._delimiter))
        self._find = self._find_content
        return True

    def _find_content(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            self.done = self._buffer.startswith(b"--") or len(self._buffer) > _MAX_PART_HEAD
            return False
        head = self._buffer[:end]
        field = _FIELD.search(head)
        self._drop(end + 4)
        is_model = field is not None and (field[1] or field[2]) == b"model" and not _FILE.search(head)
        self._find = self._find_end if is_model else self._find_part
        return True

    def _find_end(self) -> bool:
        end = self._buffer.find(self._delimiter)
        if end < 0:
            self.done = len(self._buffer) > _MAX_NAME
            return False
        self.value = self._buffer[:end]
        self.span = (self._offset, self._offset + end)
        self.done = True
        return False

    def _drop(self, count: int) -> None:
        self._buffer = self._buffer[count:]
        self._offset += count


class Upload:
    """The body of a request that is a form. Close it: what is kept of it may lie on disk.

    keep: whether what is read from now on may be asked for again; until then, everything is kept.
    """

    def __init__(self, receive: Receive, content_type: str) -> None:
        self.keep = True
        self._receive = receive
        self._field = ModelField(content_type)
        self._kept = SpooledTemporaryFile(IN_MEMORY)
        self._length = 0
        self._ended = False
        self._read_whole = asyncio.Event()

    def close(self) -> None:
        self._kept.close()

    async def model(self) -> str | None:
        """Reads as far as it must: to the end, where the file comes first. Raises ClientDisconnect, NoRoom."""
        while not self._field.done and not self._ended:
            await self._read()
        value = self._field.value
        return None if value is None else value.decode("utf-8", "replace")

    def longer_by(self, name: str) -> int:
        """Bytes that another name of the model adds to the form."""
        start, end = self._field.span
        return len(name.encode()) - (end - start)

    async def pieces(self, name: str | None = None) -> AsyncIterator[bytes]:
        """The form from its beginning, with another name of its model if one is given. Raises as `model`."""
        end_of_kept, position = self._length, 0
        if name is not None:
            start, position = self._field.span
            async for piece in self._from_kept(0, start):
                yield piece
            yield name.encode()
        async for piece in self._from_kept(position, end_of_kept):
            yield piece
        while not self._ended:
            yield await self._read()

    def receive(self) -> Receive:
        """As an ASGI server's: the form from its beginning, and then whatever else the server has to say."""
        pieces, told = self.pieces(), False

        async def receive() -> Message:
            nonlocal told
            piece = await anext(pieces, None)
            if piece is None and told:
                return await self._receive()
            told = piece is None
            return {"type": "http.request", "body": piece or b"", "more_body": not told}

        return receive

    async def rest(self) -> Message:
        """What the server has to say after the form: that the client left. While the form is read, this waits."""
        await self._read_whole.wait()
        return await self._receive()

    async def _from_kept(self, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            piece = await self._on_disk(partial(self._read_kept, start, min(_PIECE, end - start)), self._length)
            start += len(piece)
            yield piece

    def _read_kept(self, start: int, count: int) -> bytes:
        self._kept.seek(start)
        return self._kept.read(count)

    def _write_kept(self, piece: bytes) -> None:
        self._kept.seek(self._length)
        self._kept.write(piece)

    async def _on_disk(self, work: Callable[[], T], length: int) -> T:
        """In a thread, where so many bytes no longer lie in memory: a disk can be slow."""
        return work() if length <= IN_MEMORY else await to_thread.run_sync(work, limiter=_DISK)

    async def _read(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        if self._ended:
            self._read_whole.set()
        if not self._field.done:
            self._field.feed(piece)
        if self.keep:
            try:
                await self._on_disk(partial(self._write_kept, piece), self._length + len(piece))
            except OSError as exc:
                raise NoRoom from exc
            self._length += len(piece)
        return piece
