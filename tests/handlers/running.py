"""A handler at work."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from handlers.base import Handler

H = TypeVar("H", bound=Handler)


@asynccontextmanager
async def running(handler: H, release: Callable[[], object] = lambda: None) -> AsyncIterator[H]:
    """Loaded and at work while the block runs. release: lets its engine go on at the end, so that no thread stays."""
    await handler.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        try:
            yield handler
        finally:
            release()
            tasks.cancel_scope.cancel()
