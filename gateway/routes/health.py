"""Is the process alive, and are its models warm?"""

from starlette.requests import Request
from starlette.responses import Response

from gateway.responses import JSONResponse
from gateway.state import State


async def healthz(request: Request[State]) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request[State]) -> Response:
    """200 once every model is warm, 503 until then."""
    registry = request.state["registry"]
    models = {model.spec.id: "ready" if model.ready else "loading" for model in registry.models}
    if registry.ready:
        return JSONResponse({"status": "ready", "models": models})
    return JSONResponse({"status": "loading", "models": models}, status_code=503)
