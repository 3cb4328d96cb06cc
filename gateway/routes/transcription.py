"""POST /v1/audio/transcriptions and /v1/audio/translations: one body, or a stream of segments as they are finished."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller, screen_for
from gateway.routes.multipart import multipart, text_fields, uploaded_file
from gateway.schemas.common import Screen
from gateway.schemas.transcription import TranscriptionParams, TranslationParams
from gateway.schemas.transcription_reply import TranscriptEvents
from gateway.sse import EventStream
from gateway.state import State
from handlers.base import Transcription
from handlers.spec import Task
from handlers.transcription.types import Transcript

Admit = Callable[[], Awaitable[Transcription]]


async def create_transcription(request: Request[State]) -> Response:
    return await _create(request, TranscriptionParams)


async def create_translation(request: Request[State]) -> Response:
    return await _create(request, TranslationParams)


async def _create(request: Request[State], kind: type[TranscriptionParams] | type[TranslationParams]) -> Response:
    screen = screen_for(request)
    async with AsyncExitStack() as upload:
        form = await upload.enter_async_context(multipart(request))
        file = uploaded_file(form).file
        params = kind.parse(text_fields(form), screen)
        handler = request.state["registry"].resolve(params.model, Task.TRANSCRIPTION)
        asker = caller(request, streamed=params.streamed)
        admit = partial(handler.open, params.to_request(file), asker)
        if params.streamed:
            events = TranscriptEvents(params.to_form())
            return _event_stream(request, screen, stream(admit, events, upload.pop_all()))
        transcript = await until_disconnect(request, complete(admit))
    body = params.to_form().body(transcript)
    if isinstance(body, str):
        return PlainTextResponse(body, headers=screen.headers())
    return JSONResponse(body, headers=screen.headers())


async def complete(admit: Admit) -> Transcript:
    """The whole transcript. Cancelling it stops the transcription."""
    async with await admit() as transcription:
        async for _ in transcription:
            pass
        return transcription.transcript()


async def stream(admit: Admit, events: TranscriptEvents, upload: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """The events of the transcript. Closing it, at any point, stops the transcription; `upload` is closed with it."""
    async with upload, await admit() as transcription:
        async for segment in transcription:
            if event := events.delta(segment):
                yield event
        transcript = transcription.transcript()
    yield events.done(transcript)


def _event_stream(request: Request[State], screen: Screen, events: AsyncGenerator[bytes, None]) -> EventStream:
    settings = request.state["settings"]
    return EventStream(
        events,
        keepalive_interval=settings.keepalive_interval,
        send_timeout=settings.send_timeout,
        headers=screen.headers(),
    )
