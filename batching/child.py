"""The process behind a ProcessWorker: one object, whose methods are called one after the other until it is killed.

Started by `batching.child_process` as a fresh interpreter; talks over one socket in the words of `batching.messages`.
"""

import contextvars
import ctypes
import faulthandler
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from batching.context import current_requests
from batching.messages import LENGTH_BYTES, MAX_FILES, Head, describe_error, head_length, json_of, pack

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int, limit: int) -> None:
    """descriptor: of the socket to the parent. parent: its process id. limit: of a message, in bytes."""
    faulthandler.enable()
    connection = Connection(socket.socket(fileno=descriptor), limit)
    _end_with(parent, descriptor)
    setup, _ = connection.receive()
    sys.path[:] = setup["path"]
    _log_to(connection, setup["levels"])
    target: list[object] = []
    # In a thread that ends: OpenMP would keep a pool for one that has computed, and where the threads of all pools
    # are more than the cores it puts each to sleep after every operation (see batching.worker).
    opening = threading.Thread(
        target=_answer,
        args=(connection, lambda: target.append(_load(setup["factory"])(**setup["arguments"]))),
        name="factory",
    )
    opening.start()
    opening.join()
    while True:
        call, files = connection.receive()
        context = contextvars.copy_context()
        context.run(current_requests.set, tuple(call["requests"]))
        _answer(connection, partial(context.run, _call, target[0], call["method"], call["arguments"], files))


class Connection:
    """This end of the socket. Any thread may send; one receives."""

    def __init__(self, link: socket.socket, limit: int) -> None:
        link.set_inheritable(False)
        self._socket = link
        self._limit = limit
        self._sending = threading.Lock()

    def send(self, value: object) -> None:
        """Raises TypeError or MessageTooLarge before anything is sent, OSError when the parent is gone."""
        parts = pack(value, self._limit)
        with self._sending:
            for part in parts:
                self._socket.sendall(part)

    def receive(self) -> tuple[Any, Sequence[int]]:
        """The next message and the descriptors that came with it. Raises ConnectionResetError at the end."""
        prefix, files, _, _ = socket.recv_fds(self._socket, LENGTH_BYTES, MAX_FILES)
        for file in files:
            os.set_inheritable(file, False)
        prefix += self._exactly(LENGTH_BYTES - len(prefix))
        head = Head(self._exactly(head_length(prefix, self._limit)), self._limit)
        return head.value([self._exactly(size) for size in head.sizes]), files

    def _exactly(self, size: int) -> bytearray:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                raise ConnectionResetError("the parent closed the connection")
            view = view[received:]
        return buffer


def _end_with(parent: int, descriptor: int) -> None:
    """End this process when the parent does, or closes the socket, whatever is computed here at that moment."""
    if sys.platform == "linux":
        # Also when a library holds the interpreter's lock, so that the thread below cannot run.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    threading.Thread(target=_exit_on_hang_up, args=(descriptor,), name="parent", daemon=True).start()


def _exit_on_hang_up(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but the end is waited for
    poll.poll()
    os._exit(1)


def _load(path: str) -> Callable[..., object]:
    module, _, name = path.partition(":")
    factory: Callable[..., object] = getattr(importlib.import_module(module), name)
    return factory


def _call(target: object, method: str, arguments: Sequence[Any], descriptors: Sequence[int]) -> object:
    files = [open(descriptor, "rb") for descriptor in descriptors]
    try:
        extra = {"files": files} if files else {}
        return getattr(target, method)(*arguments, **extra)
    finally:
        for file in files:
            file.close()


def _answer(connection: Connection, function: Callable[[], object]) -> None:
    """Send the function's value, or whatever it raised, or why its value cannot be sent."""
    try:
        connection.send({"kind": "value", "value": function()})
    except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
        connection.send({"kind": "error", "error": describe_error(error)})


def _log_to(connection: Connection, levels: Mapping[str, int]) -> None:
    """Everything that is logged here goes to the parent, from the levels that its loggers have."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.root.handlers = [_ToParent(connection)]
    logging.captureWarnings(True)


class _ToParent(logging.Handler):
    """Sends each record, with the ids of the requests that are served, as a message."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._connection.send({"kind": "log", "record": self._fields(record), "requests": current_requests.get()})
        except Exception:  # noqa: BLE001 - as every handler of the logging module
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
        if record.exc_info:
            fields["exc_text"] = self._formatter.formatException(record.exc_info)
        return {name: json_of(value) for name, value in fields.items()}
