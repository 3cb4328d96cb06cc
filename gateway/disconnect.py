"""Work that ends when its client leaves. A model must not go on computing for nobody."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from gateway.errors import ClientDisconnected

T = TypeVar("T")


async def until_disconnect(request: Request[Any], work: Awaitable[T]) -> T:
    """The result of `work`; if the client leaves first, `work` is cancelled and ClientDisconnected is raised.

    The request's body must have been read: from now on, what `receive()` has to say is that the client left.
    """
    return await alongside(work, raise_on_disconnect(request.receive))


async def raise_on_disconnect(receive: Receive) -> None:
    """Waits for the client to leave, then raises ClientDisconnected. Never returns."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnected


async def alongside(work: Awaitable[T], *companions: Coroutine[Any, Any, None]) -> T:
    """The result of `work`; the companions are cancelled, and have ended, when it is there.

    A companion that raises cancels `work`: once, as asyncio does, so that `work` may await in its clean-up. Exceptions
    come out as they are, not as a group; the work's own before a companion's, so that a failing clean-up does not hide
    behind a client that left.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(companion) for companion in companions]
            result = await work
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        # The group lists companions first and the body's own exception last.
        error = failed.exceptions[-1]
    else:
        return result
    raise error
