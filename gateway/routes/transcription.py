"""POST /v1/audio/transcriptions."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import caller, screen_for
from gateway.routes.multipart import multipart, text_fields, uploaded_file
from gateway.schemas.transcription import TranscriptionParams
from gateway.state import State
from handlers.spec import Task


async def create_transcription(request: Request[State]) -> Response:
    screen = screen_for(request)
    async with multipart(request) as form:
        params = TranscriptionParams.parse(text_fields(form), screen)
        file = uploaded_file(form).file
        handler = request.state["registry"].resolve(params.model, Task.TRANSCRIPTION)
        transcript = await until_disconnect(request, handler.transcribe(params.to_request(file), caller(request)))
    if params.response_format == "text":
        return PlainTextResponse(f"{transcript.text}\n", headers=screen.headers())
    usage = {"type": "duration", "seconds": round(transcript.duration, 3)}
    return JSONResponse({"text": transcript.text, "usage": usage}, headers=screen.headers())
