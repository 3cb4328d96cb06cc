"""Who runs next. Pure and synchronous: no clock, no thread, no await; time comes in as a number."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from batching.errors import QueueFull
from batching.job import Job, Priority
from batching.limits import Limits

J = TypeVar("J", bound=Job[Any, Any])


class Batch(NamedTuple, Generic[J]):
    """jobs: to run together now. expired: taken from the queue past their deadline; they never run."""

    jobs: list[J]
    expired: list[J]


class Scheduler(Generic[J]):
    """A bounded waiting room. Priority first, then arrival, except that a request of several batches takes turns.

    A job's tag is the cost of those before it in its request, counted from the present, which is half through the
    latest job that was taken. So whoever comes meanwhile goes before the rest of a large request, which yet moves on
    with all work that is done (start-time fair queueing, Goyal et al., SIGCOMM 1996). Tags within one `turn_cost` are a
    turn, in which nothing overtakes; no turn is put off, so nothing starves within a priority. Where the time of a
    batch is bounded, the rest of a large request does not share the batch of those who went before it either.

    reserved, reserved_cost: places of jobs that are still being prepared, or come one after the other.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting_cost = 0
        self.reserved = 0
        self.reserved_cost = 0
        self._waiting: dict[Priority, dict[int, OrderedDict[J, None]]] = {priority: {} for priority in Priority}
        self._waiting_rest = 0
        self._present = dict.fromkeys(Priority, 0)

    def __len__(self) -> int:
        return sum(map(len, self._queues()))

    def check_room(self, jobs: int = 1, cost: int = 0) -> None:
        """Raise QueueFull if so much more may not wait.

        An empty queue takes one request of any size: above the bound, it would be told to retry for ever.
        """
        waiting = len(self) + self.reserved
        if not waiting:
            return
        if waiting + jobs > self.limits.max_queue_size:
            raise QueueFull(self.limits.max_queue_size)
        if self.waiting_cost + self.reserved_cost + cost > self.limits.max_queue_cost:
            raise QueueFull(self.limits.max_queue_cost, "units of work")

    def add(self, jobs: Sequence[J], *, reserved: bool = False) -> None:
        """Let all of them wait, or none. Raises QueueFull, unless their room is reserved.

        They are one request, or the next of one: then `ahead` of the first says how much of it waits already.
        """
        if not reserved:
            self.check_room(len(jobs), sum(job.cost for job in jobs))
        before = jobs[0].ahead if jobs else 0
        for job in jobs:
            job.tag = self._present[job.caller.priority] + before
            job.ahead = before
            before += job.cost
            self._insert(job)

    def requeue(self, jobs: Sequence[J]) -> None:
        """Put preempted jobs back at the head, in the order given. They were admitted once; no bound applies."""
        for job in reversed(jobs):
            first = min(self._waiting[job.caller.priority], default=self._turn(job))
            job.tag = first * self.limits.turn_cost
            self._insert(job)
            self._waiting[job.caller.priority][first].move_to_end(job, last=False)

    def abort(self, job: J) -> bool:
        """Withdraw a waiting job. False if it is not waiting (any more)."""
        if job not in self._waiting[job.caller.priority].get(self._turn(job), ()):
            return False
        self._remove(job)
        return True

    def clear(self) -> list[J]:
        """Withdraw every waiting job."""
        jobs = list(self._in_order())
        for job in jobs:
            self._remove(job)
        return jobs

    def is_rest(self, job: J) -> bool:
        """Whether it belongs to the rest of a large request, and the time of a batch is bounded."""
        return self.limits.is_bounded_in_time and job.ahead >= self.limits.turn_cost

    def next_batch(
        self, now: float, *, max_size: int, max_cost: int, alone: bool = True, rest: bool = True
    ) -> Batch[J]:
        """Take the jobs that run next: at most `max_size`, of at most `max_cost` together.

        alone: nothing else is running, so a first job above `max_cost` is taken all the same, by itself.
        rest: whether the rest of large requests may run now.
        """
        batch: Batch[J] = Batch([], [])
        room = max_cost
        for job in self._in_order():
            if not rest and self.is_rest(job):
                continue
            if job.is_due(now):
                batch.expired.append(job)
            elif len(batch.jobs) < max_size and self._fits(job, room, batch.jobs, alone):
                batch.jobs.append(job)
                room -= job.cost
            else:
                break
        for job in (*batch.jobs, *batch.expired):
            self._remove(job)
        for job in batch.jobs:
            self._present[job.caller.priority] = max(self._present[job.caller.priority], job.tag + job.cost // 2)
        return batch

    def first(self, now: float) -> J | None:
        """Who would be taken next."""
        return next((job for job in self._in_order() if not job.is_due(now)), None)

    def due_in(self, now: float, *, max_size: int, max_cost: int, rest: bool = True) -> float | None:
        """Seconds until a batch should start: 0 is now, None is not before another job arrives.

        The first job's arrival starts the clock, so a lone request waits `max_wait` at most. rest: as in `next_batch`.
        """
        waiting = len(self)
        if waiting == (0 if rest else self._waiting_rest):
            return None
        if waiting >= max_size or self.waiting_cost >= max_cost:
            return 0.0
        oldest = min(next(iter(queue)).timing.arrived for queue in self._queues())
        return max(0.0, oldest + self.limits.max_wait - now)

    def _fits(self, job: J, room: int, batch: Sequence[J], alone: bool) -> bool:
        if not batch:
            return alone or job.cost <= room
        fills_up = job.caller is not batch[0].caller and self.is_rest(job) and not self.is_rest(batch[0])
        return job.cost <= room and not fills_up

    def _queues(self) -> Iterator[OrderedDict[J, None]]:
        """One a turn, none of them empty; by priority and turn."""
        for turns in self._waiting.values():
            yield from (turns[turn] for turn in sorted(turns))

    def _in_order(self) -> Iterator[J]:
        return itertools.chain.from_iterable(self._queues())

    def _turn(self, job: J) -> int:
        return job.tag // self.limits.turn_cost

    def _insert(self, job: J) -> None:
        self._waiting[job.caller.priority].setdefault(self._turn(job), OrderedDict())[job] = None
        self.waiting_cost += job.cost
        self._waiting_rest += self.is_rest(job)

    def _remove(self, job: J) -> None:
        turns, turn = self._waiting[job.caller.priority], self._turn(job)
        del turns[turn][job]
        if not turns[turn]:
            del turns[turn]
        self.waiting_cost -= job.cost
        self._waiting_rest -= self.is_rest(job)
