"""The token stream of one generating job: written by the batch loop, read by the one who asked."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio

from batching.errors import DeadlineExceeded
from batching.job import Job

Prompt = TypeVar("Prompt")
Token = TypeVar("Token")


class TokenStream(Generic[Prompt, Token]):
    """Everything the job has generated, and how far its reader is.

    The loop never waits for the reader: what is unread stays in `generated`, which the job's own token limit bounds,
    and is read in one piece. `generated` is also what a preempted job is resumed from.
    """

    def __init__(
        self, id: int, job: Job[Prompt, Token], on_close: "Callable[[TokenStream[Prompt, Token]], None]"
    ) -> None:
        self.id = id
        self.job = job
        self.generated: list[Token] = []
        self.finish_reason: str | None = None
        self.failures = 0
        self._error: Exception | None = None
        self._read = 0
        self._arrived = asyncio.Event()
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
        deadline = self.job.caller.deadline
        with anyio.CancelScope(deadline=math.inf if deadline is None else deadline):
            while self._read == len(self.generated) and not self.ended:
                self._arrived.clear()
                await self._arrived.wait()
        tokens = self.generated[self._read :]
        self._read += len(tokens)
        if not tokens and self._error is not None:
            raise self._error
        if not tokens and self.finish_reason is None:
            raise DeadlineExceeded("the deadline passed before the answer was complete")
        return tokens

    def close(self) -> None:
        """Abort the job unless it has ended. Idempotent."""
        self.job.cancel.cancel()
        self._on_close(self)

    async def __aenter__(self) -> "TokenStream[Prompt, Token]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
