"""respx under an httpx2 client: respx speaks httpx, whose requests and replies have the same parts."""

import httpx
import httpx2
import respx


class RespxTransport(httpx2.AsyncBaseTransport):
    """Lets `router` answer; a side effect may raise httpx2's exceptions."""

    def __init__(self, router: respx.Router) -> None:
        self._router = router

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = await request.aread()
        reply = await self._router.async_handler(
            httpx.Request(request.method, str(request.url), headers=request.headers.raw, content=content)
        )
        return httpx2.Response(reply.status_code, headers=reply.headers.raw, stream=httpx2.ByteStream(reply.content))
