"""Server-sent events: a stream pings while it is silent, is cut when nobody reads it, and always closes its source."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from gateway.disconnect import alongside, raise_on_disconnect
from gateway.errors import ClientDisconnected, error_event

# A comment. OpenAI's parsers skip it, unless an `id:` line came before it: then they take it for an empty event.
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def frame(payload: bytes) -> bytes:
    """One event. `payload` is one line, as JSON is."""
    return b"data: " + payload + b"\n\n"


class EventStream(StreamingResponse):
    """Sends the frames that `events` yields, and closes `events` however the stream ends.

    keepalive_interval: seconds of silence after which a comment is sent, so that no proxy on the way gives up.
    send_timeout: seconds that one send may wait for the client to read; then the stream is cut.

    The status goes out with the first frame or the first ping. An exception that `events` raises before that becomes an
    ordinary error reply; after it, the last event of the stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keepalive_interval: float,
        send_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(events, headers={**_HEADERS, **(headers or {})})
        self.events = events
        self.keepalive_interval = keepalive_interval
        self.send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        reply = _Reply(head, send, self.send_timeout)
        async with aclosing(self.events):
            await alongside(self._relay(reply), raise_on_disconnect(receive), self._keep_alive(reply))
        # The companions have ended, so no ping can come after the last byte.
        await reply.end()

    async def _relay(self, reply: "_Reply") -> None:
        # The source is asked for its first event before anything is sent: closing a generator that never ran would
        # not run its clean-up.
        try:
            async for event in self.events:
                await reply.write(event)
        except ClientDisconnected:
            raise
        except Exception as exc:
            if not reply.begun:
                raise
            await reply.write(error_event(exc))

    async def _keep_alive(self, reply: "_Reply") -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            if reply.sending:
                if now >= reply.stuck_at:
                    raise ClientDisconnected
                wake_at = reply.stuck_at
            else:
                ping_at = reply.written_at + self.keepalive_interval
                if now >= ping_at:
                    await reply.ping()
                    continue
                # A send that begins in the meantime is not due before that.
                wake_at = min(ping_at, now + self.send_timeout)
            await asyncio.sleep(wake_at - now)


class _Reply:
    """The way out: the head goes before the first frame, and no send waits for a slow reader for ever.

    A timeout around every write would cost as much as the write. So `stuck_at` says when the one in progress has taken
    too long, for `_keep_alive` to look at, which has a timer anyway.
    """

    def __init__(self, head: Message, send: Send, send_timeout: float) -> None:
        self._head = head
        self._send = send
        self._send_timeout = send_timeout
        self._head_sent = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.begun = False
        self.sending = False
        self.written_at = self._loop.time()

    @property
    def stuck_at(self) -> float:
        return self.written_at + self._send_timeout

    async def write(self, frame: bytes) -> None:
        """Raises ClientDisconnected if the client left."""
        self.written_at = self._loop.time()
        self.sending = True
        try:
            if not self._head_sent.is_set():
                await self._begin()
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})
        except OSError as exc:  # a server of ASGI 2.4 raises these when the client left
            raise ClientDisconnected from exc
        finally:
            self.sending = False

    async def ping(self) -> None:
        """Raises ClientDisconnected if the client left or does not read."""
        self.written_at = self._loop.time()
        await self._deliver_in_time({"type": "http.response.body", "body": PING, "more_body": True})

    async def end(self) -> None:
        """Raises as `ping`."""
        await self._deliver_in_time({"type": "http.response.body", "body": b"", "more_body": False})

    async def _deliver_in_time(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._begin()
                await self._send(message)
        except OSError as exc:  # a TimeoutError too
            raise ClientDisconnected from exc

    async def _begin(self) -> None:
        if self.begun:
            # A ping may be about to send the head while the first event arrives.
            await self._head_sent.wait()
            return
        self.begun = True
        await self._send(self._head)
        self._head_sent.set()
