"""What every route takes from its request besides the body."""

from starlette.requests import Request

from batching.job import Caller, Priority
from gateway.schemas.common import Screen
from gateway.state import State


def caller(request: Request[State], priority: Priority = Priority.INTERACTIVE, *, streamed: bool = False) -> Caller:
    """Who asks, as the middleware has put it into the scope: the request id, and the deadline on the loop's clock.

    streamed: the reply comes in pieces, so how long the client waits in silence is no limit to the whole of it.
    """
    return Caller(
        request_id=request.scope.get("gateway.request_id", "-"),
        priority=priority,
        deadline=request.scope.get("gateway.deadline" if streamed else "gateway.reply_deadline"),
    )


def screen_for(request: Request[State]) -> Screen:
    return Screen(strict=request.state["settings"].strict_params)


def cache_salt(request: Request[State], own: str | None) -> str:
    """Who asks, by API key, and the salt that was sent: keys share no cached prefixes, so none can time another's."""
    key_digest = request.scope.get("gateway.caller", "")
    return f"{key_digest}:{own or ''}" if key_digest or own else ""
