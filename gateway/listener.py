"""Bound sockets, had before anything costly begins."""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

BACKLOG = 2048  # as uvicorn's own


class ListenError(Exception):
    """The address cannot be listened on. The text is one line: which, why, and what to do about it."""


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """A bound socket for each address of `host`. Raises ListenError.

    Done before any model is fetched or loaded, so that a port in use is known at once.
    """
    with ExitStack() as opened:
        sockets: list[socket.socket] = []
        try:
            for family, address in _addresses(host, port):
                # A second address of the same name gets the port that the first was given for 0.
                taken = sockets[0].getsockname()[1] if sockets else port
                sockets.append(opened.enter_context(_bind(family, (address[0], taken, *address[2:]))))
        except OSError as exc:
            raise ListenError(f"cannot listen on {host} port {port}: {_why(exc)}") from exc
        yield sockets


def listen(sockets: Iterable[socket.socket]) -> None:
    """Let clients in. Raises ListenError where another program that had bound the port, too, was quicker."""
    for bound_socket in sockets:
        try:
            bound_socket.listen(BACKLOG)
        except OSError as exc:
            raise ListenError(f"cannot listen on port {bound_socket.getsockname()[1]}: {_why(exc)}") from exc


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind(family: socket.AddressFamily, address: Any) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _why(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "no such host; choose an address of this machine with --host"
    ways_out = {
        errno.EADDRINUSE: "another program has it; stop that one, or choose another port with --port",
        errno.EACCES: "that takes more rights; choose a port above 1023 with --port",
        errno.EADDRNOTAVAIL: "this machine has no such address; choose another with --host",
    }
    return ways_out.get(exc.errno or 0, f"{exc.strerror}; choose another address with --host and --port")
