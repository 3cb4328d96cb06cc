"""The token stream of one generating job: written by the batch loop, read by the one who asked."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Generic, TypeVar

from batching.errors import DeadlineExceeded
from batching.job import Job
from batching.stats import Outcome

Prompt = TypeVar("Prompt")
Token = TypeVar("Token")


class TokenStream(Generic[Prompt, Token]):
    """Everything the job has generated, and how far its reader is.

    The loop never waits for the reader: what is unread stays in `generated`, which the job's own token limit bounds,
    and is read in one piece. `generated` is also what a preempted job is resumed from.
    token_at: when the last token came, on the event loop's clock.
    """

    def __init__(
        self,
        id: int,
        job: Job[Prompt, Token],
        on_close: "Callable[[TokenStream[Prompt, Token], Outcome], None]",
        arrived: asyncio.Event | None = None,
    ) -> None:
        self.id = id
        self.job = job
        self.generated: list[Token] = []
        self.finish_reason: str | None = None
        self.failures = 0
        self.token_at: float | None = None
        self._error: Exception | None = None
        self._read = 0
        self._arrived = arrived or asyncio.Event()
        self._on_close = on_close

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self._error is not None

    def push(self, token: Token) -> None:
        self.generated.append(token)
        self._arrived.set()

    def finish(self, reason: str) -> None:
        if not self.ended:
            self.finish_reason = reason
            self._arrived.set()

    def fail(self, error: Exception) -> None:
        if not self.ended:
            self._error = error
            self._arrived.set()

    async def read(self) -> Sequence[Token]:
        """The tokens since the last read, at least one; empty at the end, when `finish_reason` is set.

        Raises DeadlineExceeded, or the error the job ended with, after the tokens before it were read.
        """
        with _Alarm(self._arrived, self.job.caller.deadline) as alarm:
            while not self.has_news and not alarm.rang:
                self._arrived.clear()
                await self._arrived.wait()
        return self.take()

    @property
    def has_news(self) -> bool:
        """Whether there is something unread: tokens, or the end."""
        return self._read < len(self.generated) or self.ended

    def take(self) -> Sequence[Token]:
        """What `read` returns, or raises, without waiting."""
        tokens = self.generated[self._read :]
        self._read += len(tokens)
        if not tokens and self._error is not None:
            raise self._error
        if not tokens and self.finish_reason is None:
            raise DeadlineExceeded("the deadline passed before the answer was complete")
        return tokens

    def close(self, outcome: Outcome = Outcome.CANCELLED) -> None:
        """Abort the job unless it has ended. Idempotent. `outcome`: as what that counts."""
        self.job.cancel.cancel()
        self._on_close(self, outcome)

    async def __aenter__(self) -> "TokenStream[Prompt, Token]":
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self.close(_outcome(error))


class StreamGroup(Generic[Prompt, Token]):
    """The streams of one request, read as they come. All of them share `arrived`, and none is left open."""

    def __init__(self, streams: Sequence[TokenStream[Prompt, Token]], arrived: asyncio.Event) -> None:
        self.streams = streams
        self._arrived = arrived

    async def read(self) -> AsyncGenerator[tuple[int, Sequence[Token]], None]:
        """The number of a stream and its new tokens; empty ones are its end, when its `finish_reason` is set.

        A stream that its reader closes is not read any further. Raises as TokenStream.read does.
        """
        open_ = dict(enumerate(self.streams))
        with _Alarm(self._arrived, self.streams[0].job.caller.deadline) as alarm:
            while open_:
                ready = [i for i, stream in open_.items() if stream.has_news]
                if not ready and not alarm.rang:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                for i in ready or list(open_):
                    tokens = open_[i].take()
                    yield i, tokens
                    if not tokens or open_[i].job.cancel.cancelled:
                        del open_[i]

    async def __aenter__(self) -> "StreamGroup[Prompt, Token]":
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        for stream in self.streams:
            stream.close(_outcome(error))


def _outcome(error: object) -> Outcome:
    """Of a job whose reader leaves before its end, with what the reader was told."""
    return Outcome.EXPIRED if isinstance(error, DeadlineExceeded) else Outcome.CANCELLED


class _Alarm:
    """Wakes who waits for `arrived` when the deadline comes. A timeout around each wait would cost more than the wait.

    rang: whether it has come. The clock does not tell: a timer may be a little early.
    """

    def __init__(self, arrived: asyncio.Event, deadline: float | None) -> None:
        self.rang = False
        self._arrived = arrived
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "_Alarm":
        if self._deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(self._deadline, self._ring)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self._arrived.set()
