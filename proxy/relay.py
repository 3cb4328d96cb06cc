"""An upstream's reply, passed on to the client as it comes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from proxy.errors import UpstreamError, UpstreamTimeout
from proxy.headers import accepts_more_events
from proxy.upstream import UpstreamReply

logger = logging.getLogger(__name__)

SERVED_BY = (b"x-served-by", b"upstream")
EVENT_ENDS = (b"\n\n", b"\r\r", b"\n\r\n")


class RelayResponse:
    """An ASGI response that streams what `exchange` (`Upstream.send(...)`) gives, unparsed and chunk by chunk.

    The exchange is entered when the response is called and left on every path: sent, cut short, client gone, client too
    slow. The request's body must have been read by then: what else `receive` gives is the client leaving.

    on_error: the event that ends an event stream which the upstream cut short, or None to leave it visibly unfinished,
        as a reply of any other kind is.
    send_timeout: seconds that one send may wait for the client to read.
    deadline: when the whole reply must be there, on the event loop's clock; UpstreamTimeout after that.
    Raises what `Upstream.send` raises, UpstreamError when a reply is left unfinished, and ClientDisconnect.
    """

    def __init__(
        self,
        exchange: AbstractAsyncContextManager[UpstreamReply],
        *,
        on_error: Callable[[UpstreamError], bytes | None],
        send_timeout: float,
        deadline: float | None = None,
    ) -> None:
        self._exchange = exchange
        self._deadline = deadline
        self._on_error = on_error
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _until_client_leaves(receive), AsyncExitStack() as exchange:
            async with _until(self._deadline):
                reply = await exchange.enter_async_context(self._exchange)
            await self._relay(reply, _in_time(send, self._send_timeout))

    async def _relay(self, reply: UpstreamReply, send: Send) -> None:
        # With the first chunk at hand the start is worth promising: a failure up to here can still have its own status.
        chunk = await self._next_chunk(reply)
        await send({"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, SERVED_BY]})
        end = b""
        try:
            while chunk is not None:
                await send(_body(chunk))
                end = (end + chunk[-3:])[-3:]
                chunk = await self._next_chunk(reply)
        except UpstreamError as exc:
            await send(_body(self._closing_event(exc, reply, end)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_chunk(self, reply: UpstreamReply) -> bytes | None:
        """None at the end. Raises UpstreamUnreachable or UpstreamTimeout."""
        async with _until(self._deadline):
            return await anext(reply.chunks, None)

    def _closing_event(self, exc: UpstreamError, reply: UpstreamReply, end: bytes) -> bytes:
        event = self._on_error(exc) if accepts_more_events(reply.headers) else None
        if event is None:
            raise exc
        logger.warning("the upstream failed in mid-stream: %s (%r)", exc, exc.__cause__)
        # An event cut in the middle has to end before another can begin.
        return event if end.endswith(EVENT_ENDS) else b"\n\n" + event


def _body(chunk: bytes) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": True}


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as exc:
        raise UpstreamTimeout("the upstream's reply was not complete in time") from exc


def _in_time(send: Send, seconds: float) -> Send:
    async def send_in_time(message: Message) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except OSError as exc:  # a TimeoutError too; a server of ASGI 2.4 raises others when the client left
            raise ClientDisconnect from exc

    return send_in_time


@asynccontextmanager
async def _until_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """When the client leaves, cancels what runs inside and raises ClientDisconnect."""
    try:
        async with asyncio.TaskGroup() as tasks:
            listener = tasks.create_task(_raise_on_disconnect(receive))
            yield
            listener.cancel()
    except BaseExceptionGroup as group:
        # The edge's table of errors knows the bare exception; what was raised inside comes last.
        error = group.exceptions[-1]
    else:
        return
    raise error


async def _raise_on_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect
