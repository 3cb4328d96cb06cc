"""Bodies that are sent as they are made, which are no server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from gateway.disconnect import alongside, raise_on_disconnect
from gateway.errors import ClientDisconnected


class BodyStream(StreamingResponse):
    """Sends the chunks that `chunks` yields, and closes `chunks` however the body ends.

    send_timeout: seconds that one send may wait for the client to read; then the body is cut.

    The status goes out with the first chunk, or with the end if there is none, so whatever fails before it is an
    ordinary error reply. What fails after it is raised: the connection is closed without the end of the body, so no
    client takes it for a whole one.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], *, media_type: str, send_timeout: float, headers: Mapping[str, str]
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self.chunks = chunks
        self.send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.chunks):
            await alongside(self._relay(send), raise_on_disconnect(receive))

    async def _relay(self, send: Send) -> None:
        first = await anext(self.chunks, b"")
        await self._deliver(
            send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await self._deliver(send, {"type": "http.response.body", "body": first, "more_body": True})
        async for chunk in self.chunks:
            await self._deliver(send, {"type": "http.response.body", "body": chunk, "more_body": True})
        await self._deliver(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _deliver(self, send: Send, message: Message) -> None:
        """Raises ClientDisconnected if the client left or does not read."""
        try:
            async with asyncio.timeout(self.send_timeout):
                await send(message)
        except OSError as exc:  # a TimeoutError too
            raise ClientDisconnected from exc
