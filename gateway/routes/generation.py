"""The course of every chat and completion: admitted, then gathered into one body or streamed as it comes."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from batching.job import Caller, Priority
from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller
from gateway.schemas.common import Screen
from gateway.schemas.generation import GenerationParams
from gateway.sse import DONE, EventStream
from gateway.state import State
from handlers.base import Generation
from handlers.chat.types import Delta

Admit = Callable[[], Awaitable[Generation]]


class Reply(Protocol):
    """Gathers deltas into one body."""

    def add(self, delta: Delta) -> None: ...

    def body(self, generation: Generation) -> dict[str, Any]: ...


class Chunks(Protocol):
    """Turns each delta into events; `last` is what comes after all of them. Both may be empty."""

    def events(self, delta: Delta) -> bytes: ...

    def last(self, generation: Generation) -> bytes: ...


def asker(request: Request[State], params: GenerationParams) -> Caller:
    priority = Priority.BACKGROUND if params.background else Priority.INTERACTIVE
    return caller(request, priority, streamed=params.stream)


async def reply_whole(request: Request[State], screen: Screen, admit: Admit, reply: Reply) -> Response:
    body = await until_disconnect(request, complete(admit, reply))
    return JSONResponse(body, headers=screen.headers())


def reply_in_chunks(request: Request[State], screen: Screen, admit: Admit, chunks: Chunks) -> Response:
    settings = request.state["settings"]
    return EventStream(
        stream(admit, chunks),
        keepalive_interval=settings.keepalive_interval,
        send_timeout=settings.send_timeout,
        headers=screen.headers(),
    )


async def complete(admit: Admit, reply: Reply) -> dict[str, Any]:
    """The whole answer. Cancelling it aborts the generation."""
    async with await admit() as generation:
        async for delta in generation:
            reply.add(delta)
    return reply.body(generation)


async def stream(admit: Admit, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The events of the answer. Closing it, at any point, aborts the generation."""
    async with await admit() as generation:
        # The status goes out with the first event: whatever fails before the first token is an ordinary error reply.
        async for delta in generation:
            if events := chunks.events(delta):
                yield events
    if last := chunks.last(generation):
        yield last
    yield DONE
