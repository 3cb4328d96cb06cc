"""How much work a computation is, as a number that is the same on every machine."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any


def effort(feed: Callable[[str], object], pieces: Iterable[str]) -> int:
    """Calls made while `pieces` are fed, of Python and of C, and the characters handed to those of Python."""
    total = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal total
        if event == "c_call":
            total += 1
        elif event == "call":
            total += 1 + sum(len(value) for value in frame.f_locals.values() if isinstance(value, str))

    sys.setprofile(count)
    try:
        for piece in pieces:
            feed(piece)
    finally:
        sys.setprofile(None)
    return total


def in_fours(unit: str, size: int) -> list[str]:
    """About `size` characters of `unit` again and again, as tokens would bring them."""
    text = unit * (size // len(unit))
    return [text[i : i + 4] for i in range(0, len(text), 4)]
