"""What the system tells of running processes. Linux."""

import os
import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes in memory: now, and the most since the process began or `forget_peak` was called."""

    resident: int
    peak: int


def family(pid: int) -> dict[str, int]:
    """The process and its children, by what a child is called in its command line; the parent is "server"."""
    return {"server": pid, **children(pid)}


def children(pid: int) -> dict[str, int]:
    """Those alone, by their names; none of a process that is gone."""
    return {_name(child): child for child in _children(pid)}


def memory(pid: int) -> Memory:
    status = Path(f"/proc/{pid}/status").read_text()
    resident, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) << 10 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return Memory(resident, peak)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextmanager
def watched(pid: int) -> Iterator[Callable[[float], bool]]:
    """Tells whether that process, of whoever, is gone, or is so within the given seconds."""
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        yield lambda seconds: bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def _children(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, children.read_text().split())


def _name(pid: int) -> str:
    """batching.child_process puts it behind the program."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[4].decode()
