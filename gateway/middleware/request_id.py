"""A name for every request, in every reply and every log line."""

import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.asgi import header, with_headers
from gateway.telemetry.context import request_id_var

_ids = random.Random()  # labels, no secrets; the system's own source costs a call into it each
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """Puts `gateway.request_id` into the scope and into the context that log lines are written in.

    A client's own `x-request-id` is taken over if it is short and harmless. It is a label: nothing is looked up by it,
    and two requests may carry the same one. The reply also says how long it took to begin, in `openai-processing-ms`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope["gateway.request_id"] = _request_id(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                milliseconds = round((time.perf_counter() - started) * 1000)
                message = with_headers(
                    message,
                    [(b"x-request-id", request_id.encode()), (b"openai-processing-ms", b"%d" % milliseconds)],
                )
            await send(message)

        token = request_id_var.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id_var.reset(token)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given is not None and _ACCEPTABLE.fullmatch(given):
        return given.decode("ascii")
    return f"req_{_ids.getrandbits(128):032x}"
