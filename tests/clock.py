"""A clock that moves only when a test says so."""

import asyncio
from collections.abc import Callable

from anyio.lowlevel import checkpoint


class ManualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still. Every timeout in the product is on the loop's clock."""

    now = 1_000.0

    def time(self) -> float:
        return self.now


MANUAL_CLOCK = ("asyncio", {"loop_factory": ManualClockLoop})
"""What a test module's `anyio_backend` fixture returns to have its async tests run on this clock."""


async def advance(seconds: float) -> None:
    """Let time pass; timers that are due have fired when this returns."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ManualClockLoop), "the module's anyio_backend fixture must return MANUAL_CLOCK"
    loop.now += seconds
    await settle()


async def settle(turns: int = 20) -> None:
    """Let every task that can run do so, without waiting for anything."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], turns: int = 100_000) -> None:
    """Give way to other tasks and threads until the condition holds; fails loudly when it never does."""
    for _ in range(turns):
        if condition():
            return
        await checkpoint()
    raise AssertionError("the condition never held")


def has_timer(seconds: float) -> bool:
    """Whether something is due in exactly so long."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    return any(timer.when() == loop.time() + seconds for timer in timers)
