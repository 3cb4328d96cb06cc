"""What one-shot and step-wise batching share: a bounded door, a loop, and an orderly end."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

from batching.degradation import BatchLimit
from batching.errors import DeadlineExceeded, QueueFull, ShuttingDown
from batching.job import Caller, Job
from batching.limits import Limits
from batching.pace import Pace
from batching.scheduler import Scheduler
from batching.stats import BatchStats, Tally

logger = logging.getLogger(__name__)

J = TypeVar("J", bound=Job[Any, Any])


@dataclass(eq=False, slots=True)
class Hold:
    """cost: of the jobs that are still to come."""

    cost: int


class BatchLoop(ABC, Generic[J]):
    """Everything here runs on the event loop; only the model runs in worker threads."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self._scheduler: Scheduler[J] = Scheduler(limits)
        self._limit = BatchLimit(limits.max_batch_cost)
        self._pace = Pace()
        self._tally = Tally()
        self._changed = anyio.Event()
        self._closed = False
        self._ended = False
        self._holds: set[Hold] = set()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._scheduler)

    @property
    @abstractmethod
    def running(self) -> int:
        """Jobs in batches that run."""

    def check_room(self, jobs: int = 1, cost: int = 0) -> None:
        """Raise QueueFull or ShuttingDown if so much more may not wait."""
        if self._closed:
            raise ShuttingDown(f"{self.name} is shutting down")
        try:
            self._scheduler.check_room(jobs, cost)
        except QueueFull as full:
            self._tally.refused += 1
            full.retry_after = self._pace.seconds_for(self._scheduler.waiting_cost + self._scheduler.reserved_cost)
            raise

    @contextmanager
    def place(self, caller: Caller, jobs: int = 1) -> Iterator[None]:
        """A place in the queue for jobs that are prepared within this context; submit them right after it.

        Raises QueueFull or ShuttingDown before the effort is made, and DeadlineExceeded when it takes too long.
        """
        self.check_room(jobs)
        self._scheduler.reserved += jobs
        try:
            with anyio.CancelScope(deadline=math.inf if caller.deadline is None else caller.deadline) as scope:
                yield
        finally:
            self._scheduler.reserved -= jobs
        if scope.cancelled_caught:
            raise DeadlineExceeded("the deadline passed while the request was prepared")

    @contextmanager
    def hold(self, cost: int) -> Iterator["Hold"]:
        """Room for a request whose jobs come one after the other: once it is admitted, none of them is refused.

        Raises QueueFull or ShuttingDown. A loop that drains waits for the end of this context.
        """
        self.check_room(1, cost)
        hold = Hold(cost)
        self._holds.add(hold)
        self._scheduler.reserved += 1
        self._scheduler.reserved_cost += cost
        try:
            yield hold
        finally:
            self._holds.remove(hold)
            self._scheduler.reserved -= 1
            self._scheduler.reserved_cost -= hold.cost
            self._signal()

    def stats(self) -> BatchStats:
        """What the loop does now and has done so far."""
        return BatchStats(
            waiting=self.waiting,
            waiting_cost=self._scheduler.waiting_cost + self._scheduler.reserved_cost,
            running=self.running,
            cost_limit=self._limit.current(anyio.current_time()),
            refused=self._tally.refused,
            out_of_memory=self._tally.out_of_memory,
            outcomes=dict(self._tally.outcomes),
            batch_size=self._tally.batch_size.stats(),
            queue_time=self._tally.queue_time.stats(),
            predicted_wait=self._pace.seconds_for(self._scheduler.waiting_cost, at_least=0.0),
        )

    async def run(self) -> None:
        """The loop. Ends by cancellation; then nobody is left waiting, and whoever comes is turned away."""
        try:
            await self._serve()
        finally:
            self._closed = self._ended = True
            self._abandon()
            self._signal()

    async def drain(self) -> None:
        """Refuse new work; return when every admitted job has its end."""
        self._closed = True
        while self._busy or self._holds:
            await self._next_change()

    @property
    @abstractmethod
    def _busy(self) -> bool:
        """Whether an admitted job has not ended yet."""

    @abstractmethod
    async def _serve(self) -> None:
        """Run what is due, and wait for something to change, for ever."""

    @abstractmethod
    def _abandon(self) -> None:
        """End every admitted job with ShuttingDown."""

    def _enqueue(self, jobs: Sequence[J], hold: Hold | None = None) -> None:
        """Let all of them wait, or none. Raises QueueFull or ShuttingDown; under a hold only when all has ended."""
        cost = sum(job.cost for job in jobs)
        if hold is None:
            self.check_room(len(jobs), cost)
        elif self._ended:
            raise ShuttingDown(f"{self.name} was stopped")
        else:
            taken = min(cost, hold.cost)
            hold.cost -= taken
            self._scheduler.reserved_cost -= taken
        now = anyio.current_time()
        for job in jobs:
            job.timing.arrived = now
        self._scheduler.add(jobs, reserved=hold is not None)
        self._signal()

    def _shrink(self, failed_cost: int) -> None:
        now = anyio.current_time()
        self._limit.shrink(failed_cost, now)
        logger.warning("%s ran out of memory: batches now cost at most %d", self.name, self._limit.current(now))

    def _signal(self) -> None:
        self._changed.set()

    async def _next_change(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()
