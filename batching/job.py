"""A job: one piece of work, who asked for it, and the one answer it will get."""

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Priority(IntEnum):
    """Lower runs first."""

    INTERACTIVE = 0
    BACKGROUND = 1


class CancelToken:
    """A mark that the loop sets and a worker thread reads between costly steps; a thread cannot be stopped."""

    __slots__ = ("_cancelled",)

    def __init__(self) -> None:
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a job runs. `deadline` is on the event loop's clock, in seconds; `request_id` is a label only."""

    request_id: str = "-"
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None


@dataclass(slots=True)
class Timing:
    """When a job arrived, started and ended, in seconds on the event loop's clock, and in how large a batch it ran."""

    arrived: float = 0.0
    started: float | None = None
    ended: float | None = None
    batch_size: int = 0

    @property
    def queue_time(self) -> float:
        return 0.0 if self.started is None else self.started - self.arrived


@dataclass(eq=False, slots=True)
class Job(Generic[Work, Result]):
    """`cost` is in the batcher's own unit: tokens, audio seconds, characters. `tag` and `ahead` are the scheduler's:
    its place in the queue, and the cost of those before it in its request.
    """

    work: Work
    caller: Caller = field(default_factory=Caller)
    cost: int = 1
    cancel: CancelToken = field(default_factory=CancelToken)
    timing: Timing = field(default_factory=Timing)
    tag: int = 0
    ahead: int = 0
    future: "asyncio.Future[Result] | None" = None

    def is_due(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.caller.deadline is not None and now >= self.caller.deadline
