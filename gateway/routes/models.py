"""GET /v1/models and /v1/models/{model}: what is served, here and by upstreams, and under which names."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from gateway.responses import JSONResponse
from gateway.schemas.models import model_entry, upstream_entry
from gateway.state import State
from proxy.routing import Mode


def knows_models(request: Request[State]) -> bool:
    """Whether what is asked for can be said here, without asking an upstream that takes every name."""
    registry, name = request.state["registry"], request.path_params.get("model")
    if name is None:
        return bool(registry.models or _upstream_models(request))
    return name in registry or name in _upstream_models(request)


async def list_models(request: Request[State]) -> Response:
    """Every model once, under its id; the other names it answers to are in `aliases`."""
    registry, further = request.state["registry"], _upstream_models(request)
    entries = [model_entry(model) for model in registry.models]
    entries += [upstream_entry(name, upstream) for name, upstream in further.items() if name not in registry]
    return JSONResponse({"object": "list", "data": entries})


async def retrieve_model(request: Request[State]) -> Response:
    """A model by its id or an alias; the entry's `id` is the name that was asked for."""
    name, registry, further = request.path_params["model"], request.state["registry"], _upstream_models(request)
    if name in further and name not in registry:
        return JSONResponse(upstream_entry(name, further[name]))
    return JSONResponse(model_entry(registry.find(name), name))


def _upstream_models(request: Request[State]) -> Mapping[str, str]:
    """Those that the settings name and the modes let go there, with their upstreams' names."""
    upstreams, settings = request.state["upstreams"], request.state["settings"]
    named = {} if upstreams is None else upstreams.models()
    return {name: upstream for name, upstream in named.items() if settings.mode_of(name) is not Mode.OFF}
