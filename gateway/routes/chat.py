"""POST /v1/chat/completions: one JSON body, or a stream of chunks."""

from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from batching.job import Caller, Priority
from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller, screen_for
from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.completions import Chunks, Stamp, completion, fingerprint, usage
from gateway.sse import DONE, EventStream
from gateway.state import State
from handlers.base import ChatHandler
from handlers.spec import Task


async def create_chat_completion(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = ChatCompletionParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.CHAT)
    stamp = Stamp(params.model, fingerprint(handler.spec))
    priority = Priority.BACKGROUND if params.service_tier == "flex" else Priority.INTERACTIVE
    asker = caller(request, priority, streamed=params.stream)
    if params.stream:
        settings = request.state["settings"]
        return EventStream(
            stream(handler, params, asker, stamp),
            keepalive_interval=settings.keepalive_interval,
            send_timeout=settings.send_timeout,
            headers=screen.headers(),
        )
    body = await until_disconnect(request, complete(handler, params, asker, stamp))
    return JSONResponse(body, headers=screen.headers())


async def complete(
    handler: ChatHandler, params: ChatCompletionParams, asker: Caller, stamp: Stamp
) -> dict[str, object]:
    """The whole answer. Cancelling it aborts the generation."""
    async with await handler.open(params.to_request(), asker) as generation:
        deltas = [delta async for delta in generation]
    text = "".join(delta.text for delta in deltas)
    last = deltas[-1]
    counts = usage(generation.prompt_tokens, last.completion_tokens)
    return completion(stamp, text, last.finish_reason, counts, params.served_tier)


async def stream(
    handler: ChatHandler, params: ChatCompletionParams, asker: Caller, stamp: Stamp
) -> AsyncGenerator[bytes, None]:
    """The events of the answer. Closing it, at any point, aborts the generation."""
    include_usage = params.stream_options.include_usage
    chunks = Chunks(stamp, include_usage=include_usage)
    async with await handler.open(params.to_request(), asker) as generation:
        deltas = aiter(generation)
        # The status goes out with the first event: whatever fails before the first token is an ordinary error reply.
        delta = await anext(deltas)
        yield chunks.role()
        if delta.text:
            yield chunks.text(delta.text)
        async for delta in deltas:
            if delta.text:
                yield chunks.text(delta.text)
        yield chunks.finish(delta.finish_reason)
    if include_usage:
        yield chunks.usage(usage(generation.prompt_tokens, delta.completion_tokens))
    yield DONE
