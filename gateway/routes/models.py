"""GET /v1/models and /v1/models/{model}: what is served, and under which names."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.responses import JSONResponse
from gateway.schemas.models import model_entry
from gateway.state import State


async def list_models(request: Request[State]) -> Response:
    """Every model once, under its id; the other names it answers to are in `aliases`."""
    entries = [model_entry(model) for model in request.state["registry"].models]
    return JSONResponse({"object": "list", "data": entries})


async def retrieve_model(request: Request[State]) -> Response:
    """A model by its id or an alias; the entry's `id` is the name that was asked for."""
    name = request.path_params["model"]
    return JSONResponse(model_entry(request.state["registry"].find(name), name))
