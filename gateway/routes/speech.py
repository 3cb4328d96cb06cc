"""POST /v1/audio/speech, GET /v1/audio/voices."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.body_stream import BodyStream
from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller, screen_for
from gateway.schemas.common import header_safe
from gateway.schemas.speech import SpeechParams, delta_event, done_event
from gateway.sse import EventStream
from gateway.state import State
from handlers.base import Synthesis
from handlers.spec import Task


async def create_speech(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = SpeechParams.parse(await request.body(), screen)
    settings = request.state["settings"]
    handler = request.state["registry"].resolve(params.model, Task.SPEECH)
    opening = handler.open(params.to_request(), caller(request, streamed=True))
    synthesis = await until_disconnect(request, opening)
    headers = {**_headers(synthesis), **screen.headers()}
    if params.stream_format == "sse":
        return EventStream(
            _events(synthesis),
            keepalive_interval=settings.keepalive_interval,
            send_timeout=settings.send_timeout,
            headers=headers,
        )
    return BodyStream(
        _audio(synthesis), media_type=synthesis.media_type, send_timeout=settings.send_timeout, headers=headers
    )


async def list_voices(request: Request[State]) -> Response:
    """Every name that `voice` may have, with the model it belongs to and the local voice that speaks."""
    speakers = (model for model in request.state["registry"].models if model.spec.task is Task.SPEECH)
    voices = [
        {"id": name, "object": "audio.voice", "name": name, "model": model.spec.id, "local_voice": local}
        for model in speakers
        for name, local in model.describe().get("voices", {}).items()
    ]
    return JSONResponse({"object": "list", "data": voices})


def _headers(synthesis: Synthesis) -> dict[str, str]:
    headers = {"x-voice": header_safe(synthesis.voice)}
    if synthesis.transliterated:
        headers["x-transliterated"] = ",".join(sorted(map(header_safe, synthesis.transliterated)))
    return headers


async def _audio(synthesis: Synthesis) -> AsyncGenerator[bytes, None]:
    """Closing it, at any point, ends the synthesis."""
    async with synthesis:
        async for chunk in synthesis:
            yield chunk


async def _events(synthesis: Synthesis) -> AsyncGenerator[bytes, None]:
    async with aclosing(_audio(synthesis)) as audio:
        async for chunk in audio:
            yield delta_event(chunk)
    yield done_event(synthesis)
