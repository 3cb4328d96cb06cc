"""POST /v1/chat/completions: one JSON body, or a stream of chunks."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from batching.job import Caller
from gateway.images import with_images
from gateway.routes.context import cache_salt, screen_for
from gateway.routes.generation import asker, reply_in_chunks, reply_whole
from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.chat_chunks import ChatChunks
from gateway.schemas.chat_reply import ChatForm, ChatReply
from gateway.schemas.reply import Stamp
from gateway.state import State
from handlers.base import ChatHandler, Generation
from handlers.chat.types import ChatRequest
from handlers.spec import Task
from proxy.images import ImageFetcher


async def create_chat_completion(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = ChatCompletionParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.CHAT)
    chat = params.to_request(cache_salt(request, params.cache_salt))
    admit = partial(open_chat, handler, chat, asker(request, params), request.state["images"])
    stamp = Stamp.new("chatcmpl", params.model, handler.spec)
    form = ChatForm(logprobs=params.logprobs, as_function_call=params.as_function_call)
    if params.stream:
        chunks = ChatChunks(stamp, form, n=params.n, include_usage=params.stream_options.include_usage)
        return reply_in_chunks(request, screen, admit, chunks)
    reply = ChatReply(stamp, form, n=params.n, service_tier=params.served_tier)
    return await reply_whole(request, screen, admit, reply)


async def open_chat(handler: ChatHandler, chat: ChatRequest, asker: Caller, fetcher: ImageFetcher | None) -> Generation:
    """Images are fetched only for a model that reads them, and only as long as somebody waits for the answer."""
    handler.check_images(chat.images)
    return await handler.open(await with_images(chat, fetcher, asker.deadline), asker)
