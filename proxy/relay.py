"""An upstream's reply, passed on to the client as it comes."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from proxy.errors import UpstreamError, UpstreamTimeout
from proxy.headers import RawHeaders, accepts_more_events
from proxy.routing import Reason
from proxy.upstream import UpstreamReply

logger = logging.getLogger(__name__)

EVENT_ENDS = (b"\n\n", b"\r\r", b"\n\r\n")


class RelayResponse:
    """An ASGI response that streams what `exchange` (`Upstream.send(...)`) gives, unparsed and chunk by chunk.

    The exchange is entered when the response is called and left on every path: sent, cut short, client gone, client too
    slow. The request's body must have been read by then: what else `receive` gives is the client leaving.

    reason: why an upstream was asked.
    on_error: the event that ends an event stream which the upstream cut short, or None to leave it visibly unfinished,
        as a reply of any other kind is.
    send_timeout: seconds that one send may wait for the client to read.
    deadline: when the whole reply must be there, on the event loop's clock, if the reply is not due earlier;
        UpstreamTimeout after that.
    Raises what `Upstream.send` raises, UpstreamError when a reply is left unfinished, and ClientDisconnect.
    """

    def __init__(
        self,
        exchange: AbstractAsyncContextManager[UpstreamReply],
        *,
        reason: Reason,
        on_error: Callable[[UpstreamError], bytes | None],
        send_timeout: float,
        deadline: float | None = None,
    ) -> None:
        self._exchange = exchange
        self._reason = reason
        self._deadline = deadline
        self._on_error = on_error
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _Guard(receive, self._deadline) as guard, self._exchange as reply:
            await self._relay(reply, guard, guard.in_time(send, self._send_timeout))

    async def _relay(self, reply: UpstreamReply, guard: "_Guard", send: Send) -> None:
        # With the first chunk at hand the start is worth promising: a failure up to here can still have its own status.
        guard.hasten(reply.due)
        chunk = await guard.next_chunk(reply)
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [*reply.headers, *served_by(reply.served_by, self._reason)],
            }
        )
        end = b""
        try:
            while not reply.chunks.complete:
                await send(_body(chunk, more=True))
                end = (end + chunk[-3:])[-3:]
                chunk = await guard.next_chunk(reply)
        except UpstreamError as exc:
            chunk = self._closing_event(exc, reply, end)
        await send(_body(chunk, more=False))

    def _closing_event(self, exc: UpstreamError, reply: UpstreamReply, end: bytes) -> bytes:
        event = self._on_error(exc) if accepts_more_events(reply.headers) else None
        if event is None:
            raise exc
        logger.warning("the upstream failed in mid-stream: %s (%r)", exc, exc.__cause__)
        # An event cut in the middle has to end before another can begin.
        return event if end.endswith(EVENT_ENDS) else b"\n\n" + event


def served_by(who: str, reason: Reason) -> RawHeaders:
    return [(b"x-served-by", who.encode("ascii")), (b"x-served-because", reason.encode("ascii"))]


def _body(chunk: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class _Guard:
    """Ends what runs inside when the client leaves, or when it takes too long: by one cancellation, which comes out as
    ClientDisconnect or UpstreamTimeout.

    One timer serves the whole exchange; a timeout around every read and write would cost as much as those do.
    """

    def __init__(self, receive: Receive, deadline: float | None) -> None:
        self._receive = receive
        self._deadline = math.inf if deadline is None else deadline
        self._due = self._deadline
        self._ended_by: Exception | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "a response is called in a task"
        self._task = task
        self._listener = self._loop.create_task(_disconnected(self._receive))
        self._listener.add_done_callback(self._client_left)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._set_timer()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        self._listener.remove_done_callback(self._client_left)
        self._listener.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(exc, asyncio.CancelledError):
            self._raise_reason(exc)

    def hasten(self, deadline: float) -> None:
        """The reply has a deadline of its own, perhaps an earlier one."""
        self._deadline = self._due = min(self._deadline, deadline)
        if self._timer_at > self._due:
            self._set_timer()

    async def next_chunk(self, reply: UpstreamReply) -> bytes:
        """Empty at the end. Raises UpstreamUnreachable, or UpstreamTimeout, also at the deadline."""
        try:
            return await anext(reply.chunks, b"")
        except asyncio.CancelledError as exc:
            if isinstance(self._ended_by, UpstreamTimeout):
                self._raise_reason(exc)
            raise

    def _raise_reason(self, exc: asyncio.CancelledError) -> None:
        """Unless somebody else has cancelled the task, too."""
        reason, self._ended_by = self._ended_by, None
        self._deadline = self._due = math.inf
        if reason is not None and self._task.uncancel() == 0:
            raise reason from exc

    def in_time(self, send: Send, seconds: float) -> Send:
        """`send` that is given up when the client takes nothing for so long."""

        async def send_in_time(message: Message) -> None:
            self._due = self._loop.time() + seconds
            if self._timer_at > self._due:
                self._set_timer()
            try:
                await send(message)
            except OSError as exc:  # how a server of ASGI 2.4 says that the client left
                raise ClientDisconnect from exc
            finally:
                self._due = self._deadline

        return send_in_time

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._due
        self._timer = None if self._due == math.inf else self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        if self._loop.time() < self._due:
            self._set_timer()
            return
        self._timer = None
        sending = self._due != self._deadline
        self._end(ClientDisconnect() if sending else UpstreamTimeout("the upstream's reply was not complete in time"))

    def _client_left(self, _: object) -> None:
        self._end(ClientDisconnect())

    def _end(self, reason: Exception) -> None:
        if self._ended_by is None:
            self._ended_by = reason
            self._task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
