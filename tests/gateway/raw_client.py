"""A client at the ASGI level, for what no HTTP client can do at will: leave, or stop reading, at any message."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Scope


class RawClient:
    """One request, and what comes back.

    body: the chunks of the request's body; `endless=True` leaves its end out.
    leave_after: leave as soon as that many messages have been sent to us.
    stall_after: stop reading then, until `reading` is set: the next send waits.
    spec: "2.3" ignores what is sent to a client that left, as uvicorn does; "2.4" raises OSError.
    """

    def __init__(
        self,
        path: str = "/v1/embeddings",
        *,
        method: str = "POST",
        headers: Iterable[tuple[str, str]] = (),
        body: Sequence[bytes] = (b"",),
        endless: bool = False,
        leave_after: int | None = None,
        stall_after: int | None = None,
        spec: str = "2.3",
        peer: tuple[str, int] | None = ("192.0.2.1", 50000),
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"secret=query",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "client": peer,
            "server": ("127.0.0.1", 8000),
        }
        self.reading = asyncio.Event()
        self.reading.set()
        self.receives = 0
        self.sent: list[Message] = []
        self._to_come = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in body]
        if not endless:
            self._to_come[-1]["more_body"] = False
        self._leave_after = leave_after
        self._stall_after = stall_after
        self._left = asyncio.Event()
        if leave_after == 0:
            self.leave()
        if stall_after == 0:
            self.reading.clear()

    async def call(self, app: ASGIApp) -> "RawClient":
        await app(self.scope, self.receive, self.send)
        return self

    def leave(self) -> None:
        self._left.set()
        self.reading.set()

    async def receive(self) -> Message:
        self.receives += 1
        if self._to_come and not self._left.is_set():
            return self._to_come.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reading.wait()
        if self._left.is_set():
            if self.scope["asgi"]["spec_version"] == "2.4":
                raise OSError("the client is gone")
            return
        assert not self.complete, "nothing may follow the last message"
        assert (message["type"] == "http.response.start") == (not self.sent), "the head comes first, and once"
        self.sent.append(message)
        if len(self.sent) == self._leave_after:
            self.leave()
        if len(self.sent) == self._stall_after:
            self.reading.clear()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        pairs = [(name.decode(), value.decode()) for name, value in self.sent[0]["headers"]]
        assert len(pairs) == len(dict(pairs)), f"a header came twice: {pairs}"
        return dict(pairs)

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:] if message.get("body")]

    @property
    def error(self) -> Any:
        """The reply's error object; checks the envelope around it."""
        envelope = orjson.loads(b"".join(self.chunks))
        assert list(envelope) == ["error"]
        assert set(envelope["error"]) == {"message", "type", "param", "code"}
        return envelope["error"]

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)
