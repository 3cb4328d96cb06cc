"""GET /metrics, for Prometheus."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.state import State


async def metrics(request: Request[State]) -> Response:
    text, content_type = await request.state["metrics"].text(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})
