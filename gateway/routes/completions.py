"""POST /v1/completions: plain prompts, answered in one JSON body or a stream of chunks."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.routes.context import cache_salt, screen_for
from gateway.routes.generation import asker, reply_in_chunks, reply_whole
from gateway.schemas.completion_reply import CompletionChunks, CompletionReply
from gateway.schemas.completions import CompletionParams
from gateway.schemas.reply import Stamp
from gateway.state import State
from handlers.spec import Task


async def create_completion(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = CompletionParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.CHAT)
    admit = partial(handler.complete, params.to_request(cache_salt(request, params.cache_salt)), asker(request, params))
    stamp = Stamp.new("cmpl", params.model, handler.spec)
    if params.stream:
        include_usage = params.stream_options.include_usage
        chunks = CompletionChunks(stamp, logprobs=params.logprobs, include_usage=include_usage)
        return reply_in_chunks(request, screen, admit, chunks)
    reply = CompletionReply(stamp, choices=len(params.prompt) * params.n, logprobs=params.logprobs)
    return await reply_whole(request, screen, admit, reply)
