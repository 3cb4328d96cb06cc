"""POST /v1/audio/speech, GET /v1/audio/voices."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller, screen_for
from gateway.schemas.common import header_safe
from gateway.schemas.speech import SpeechParams
from gateway.state import State
from handlers.spec import Task


async def create_speech(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = SpeechParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.SPEECH)
    speech = await until_disconnect(request, handler.synthesize(params.to_request(), caller(request)))
    headers = {"x-voice": header_safe(speech.voice), **screen.headers()}
    return Response(speech.audio, headers=headers, media_type=speech.media_type)


async def list_voices(request: Request[State]) -> Response:
    """Every name that `voice` may have, with the model it belongs to and the local voice that speaks."""
    speakers = (model for model in request.state["registry"].models if model.spec.task is Task.SPEECH)
    voices = [
        {"id": name, "object": "audio.voice", "name": name, "model": model.spec.id, "local_voice": local}
        for model in speakers
        for name, local in model.describe().get("voices", {}).items()
    ]
    return JSONResponse({"object": "list", "data": voices})
