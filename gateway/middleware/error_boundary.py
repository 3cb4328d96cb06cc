"""The last resort: whatever nobody caught becomes an OpenAI-shaped 500 and one traceback in the log."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ClientDisconnected, error_response, log_failure


class ErrorBoundary:
    """Nothing but ClientDisconnect gets past it, so neither Starlette nor the server prints a second traceback.

    A reply that has begun cannot be taken back: it is left incomplete, and the server closes the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_to_client(message: Message) -> None:
            nonlocal begun
            begun = True
            try:
                await send(message)
            except OSError as exc:  # how a server of ASGI 2.4 says that the client left
                raise ClientDisconnected from exc

        try:
            await self.app(scope, receive, send_to_client)
        except ClientDisconnect:
            raise
        except Exception as exc:  # noqa: BLE001 - this is where unforeseen exceptions end
            if begun:
                log_failure(exc)
            else:
                await error_response(exc)(scope, receive, send_to_client)
