"""What tests run in a process of its own. It waits only where a test says so, on a socket that the test holds."""

import ctypes
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from batching.context import current_requests

logger = logging.getLogger("handlers.in_child")


class Refused(Exception):
    """As handlers.errors.InvalidRequest: fields beside the text."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RefusedMore(Refused):
    """Known to the parent by its base class only."""


class Target:
    def __init__(self, latch: str | None) -> None:
        self._latch = socket.socket(socket.AF_UNIX)
        if latch is not None:
            self._latch.connect(latch)

    def echo(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()

    def wait(self, name: str) -> str:
        """Say that this has begun, and go on when the test says so."""
        self._latch.sendall(name.encode() + b"\n")
        self._latch.recv(1)
        return name

    def wait_holding_the_lock(self) -> None:
        """As a native library would: no other Python thread can run. Nothing lets this go on."""
        self._latch.sendall(b"holding\n")
        ctypes.PyDLL(None).pause()

    def refuse(self, more: bool) -> None:
        raise (RefusedMore if more else Refused)("no \udc80", "file")

    def fail(self, kind: str) -> None:
        raise {"KeyError": KeyError, "MemoryError": MemoryError, "SystemExit": SystemExit}[kind]("gone")

    def unsendable(self) -> object:
        return object()

    def large(self, size: int) -> bytes:
        return bytes(size)

    def log(self, text: str) -> Sequence[str]:
        logger.debug("quiet")
        logger.warning("said %s", text, extra={"seconds": 1.5})
        try:
            raise ValueError("inside")
        except ValueError:
            logger.exception("and this")
        return current_requests.get()

    def read(self, *, files: Sequence[BinaryIO]) -> list[bytes]:
        return [file.read() for file in files]

    def descriptors(self) -> int:
        return len(list(Path("/dev/fd").iterdir()))

    def abort(self) -> None:
        faulthandler.disable()  # its report would be noise here
        os.abort()

    def ignore_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def create(latch: str | None = None, *, refuse: bool = False, crash_if: str | None = None) -> Target:
    """crash_if: a file; while it is there the process dies here."""
    if refuse:
        raise Refused("model m: there is nothing here", "model")
    if crash_if is not None and Path(crash_if).exists():
        os._exit(3)
    return Target(latch)
