"""POST /v1/rerank, also under the paths of Cohere's second version and of servers without one."""

from starlette.requests import Request
from starlette.responses import Response

from batching.job import Priority
from gateway.disconnect import until_disconnect
from gateway.responses import JSONResponse
from gateway.routes.context import cache_salt, caller, screen_for
from gateway.schemas.rerank import RerankParams, reply
from gateway.state import State
from handlers.spec import Task

RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")


async def create_rerank(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = RerankParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.RERANK)
    asker = caller(request, Priority.BACKGROUND if params.priority > 0 else Priority.INTERACTIVE)
    wanted = params.to_request(cache_salt(request, params.cache_salt))
    relevance = await until_disconnect(request, handler.rerank(wanted, asker))
    return JSONResponse(reply(params, relevance), headers=screen.headers())
