"""Is the process alive, and are its models warm?"""

from starlette.requests import Request
from starlette.responses import Response

from gateway.responses import JSONResponse
from gateway.state import State
from handlers.registry import Model


async def healthz(request: Request[State]) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request[State]) -> Response:
    """200 once every model is warm, 503 until then, and when the process of one is given up.

    A process that is started again keeps the 200: requests wait for it, and it is killed whenever a client leaves.
    """
    registry = request.state["registry"]
    models = {model.spec.id: _state(model) for model in registry.models}
    status = next((state for state in ("broken", "loading") if state in models.values()), "ready")
    return JSONResponse({"status": status, "models": models}, status_code=200 if registry.ready else 503)


def _state(model: Model) -> str:
    if model.broken:
        return "broken"
    if model.restarting:
        return "restarting"
    return "ready" if model.ready else "loading"
