"""One-shot batches: embeddings, encoder passes, synthesis. A thin async shell around a Scheduler."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Generic, cast

import anyio

from batching.context import current_requests
from batching.degradation import Report, is_memory_error, run_isolated, run_isolated_elsewhere
from batching.errors import DeadlineExceeded, ShuttingDown
from batching.job import Job, Result, Work
from batching.limits import Limits
from batching.loop import BatchLoop, Hold
from batching.stats import Outcome, outcome_of
from batching.worker import Worker

# For how long after a small request.
_LANE_KEPT_SECONDS = 2.0

Run = Callable[[Sequence[Work]], Sequence[Result | Exception]]
RunElsewhere = Callable[[Sequence[Work]], Awaitable[Sequence[Result | Exception]]]


class Batcher(BatchLoop[Job[Work, Result]], Generic[Work, Result]):
    """Gathers jobs into batches and gives every job exactly one answer.

    run: the model, called in a worker thread with the batch's works; returns one entry a work, in order. An entry
        that is an Exception becomes that job's error. What it raises is isolated by splitting the batch.
    worker: where it runs. None: `run` is a coroutine function, for a model in another process; it is cancelled as soon
        as nobody waits for any job of its batch. beside: workers for as many more batches at the same time, when more
        is waiting than one batch takes; run_beside: how batches run then, `run` being for one that has the machine to
        itself. Each is a lane; one of several is kept for small requests while they keep coming.
    is_out_of_memory, release_memory: how the device says no, and how it gives back what a failed batch held.
    """

    def __init__(
        self,
        name: str,
        run: Run[Work, Result] | RunElsewhere[Work, Result],
        limits: Limits,
        *,
        worker: Worker | None,
        beside: Sequence[Worker] = (),
        run_beside: Run[Work, Result] | None = None,
        is_out_of_memory: Callable[[BaseException], bool] = is_memory_error,
        release_memory: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name, limits)
        self._run_alone = cast(Run[Work, Result], run)
        self._run_beside = run_beside or self._run_alone
        self._workers = (worker, *beside)
        self._is_out_of_memory = is_out_of_memory
        self._release_memory = release_memory
        self._running: dict[Worker | None, Sequence[Job[Work, Result]]] = {}
        self._elsewhere: anyio.CancelScope | None = None
        self._has_machine = False
        self._lane_kept_until = -math.inf

    @property
    def running(self) -> int:
        return sum(map(len, self._running.values()))

    async def submit(self, job: Job[Work, Result], hold: Hold | None = None) -> Result:
        """Wait for the job's answer. Cancelling the wait withdraws the job. hold: the room that was kept for it.

        Raises QueueFull, ShuttingDown, DeadlineExceeded, OutOfMemory, EngineFailed, or the error `run` returned for it.
        """
        return (await self.submit_all([job], hold))[0]

    async def submit_all(self, jobs: Sequence[Job[Work, Result]], hold: Hold | None = None) -> list[Result]:
        """As `submit`, for jobs that are admitted together or not at all. The first error withdraws the rest."""
        self._enqueue(jobs, hold)
        if not any(map(self._scheduler.is_rest, jobs)):
            self._lane_kept_until = anyio.current_time() + _LANE_KEPT_SECONDS
        loop = asyncio.get_running_loop()
        for job in jobs:
            job.future = loop.create_future()
        deadline = min((job.caller.deadline for job in jobs if job.caller.deadline is not None), default=math.inf)
        unanswered = Outcome.CANCELLED
        try:
            with anyio.CancelScope(deadline=deadline):
                return [await job.future for job in jobs if job.future]
            unanswered = Outcome.EXPIRED
            raise DeadlineExceeded("the deadline passed before the result was there")
        finally:
            for job in jobs:
                self._withdraw(job, unanswered)

    def _withdraw(self, job: Job[Work, Result], unanswered: Outcome) -> None:
        """Take back a job that nobody waits for any more; nothing is left to do but count if it has its answer."""
        if job.future is None:
            return
        if job.future.done() and not job.future.cancelled():
            # Looking at an error marks it as seen: asyncio would complain about one that nobody awaits.
            self._tally.outcomes[outcome_of(job.future.exception())] += 1
            return
        self._tally.outcomes[unanswered] += 1
        job.future.cancel()
        job.cancel.cancel()
        if self._scheduler.abort(job):
            self._signal()
        elif self._elsewhere and not any(_is_awaited(job) for job in self._running.get(None, ())):
            self._elsewhere.cancel()

    @property
    def _busy(self) -> bool:
        jobs = chain.from_iterable(self._running.values())
        return self.waiting > 0 or any(map(_is_awaited, jobs))

    async def _serve(self) -> None:
        if len(self._workers) == 1:
            return await self._run_batches(self._workers[0])
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(self._run_batches, worker)

    async def _run_batches(self, worker: Worker | None) -> None:
        """One batch after another in one worker."""
        while True:
            await self._batch_due()
            now = anyio.current_time()
            batch = self._scheduler.next_batch(
                now,
                max_size=self.limits.max_batch_size,
                max_cost=self._max_cost(now),
                rest=self._takes_rest(now),
            )
            for job in batch.expired:
                _answer(job, DeadlineExceeded("the deadline passed while the request waited"))
            if batch.jobs:
                await self._run_batch(batch.jobs, worker)
            self._signal()

    async def _batch_due(self) -> None:
        while (delay := self._due_in()) != 0:
            with anyio.move_on_after(delay):
                await self._next_change()

    def _due_in(self) -> float | None:
        if self._has_machine:
            return None
        now = anyio.current_time()
        return self._scheduler.due_in(
            now, max_size=self.limits.max_batch_size, max_cost=self._max_cost(now), rest=self._takes_rest(now)
        )

    def _lanes_for_rest(self, now: float) -> int:
        """In how many lanes the rest of large requests may run: while small ones keep coming, one is kept for them."""
        return max(1, len(self._workers) - (now < self._lane_kept_until))

    def _takes_rest(self, now: float) -> bool:
        running = sum(self._scheduler.is_rest(jobs[0]) for jobs in self._running.values())
        return running < self._lanes_for_rest(now)

    def _max_cost(self, now: float) -> int:
        """What fits into memory, and into the time that a batch should take."""
        fits = self._limit.current(now)
        if not self.limits.is_bounded_in_time:
            return fits
        in_time = max(self.limits.least_batch_cost, int(self._pace.cost_in(self.limits.max_batch_seconds)))
        return min(fits, max(1, in_time // len(self._workers)))

    async def _run_batch(self, jobs: Sequence[Job[Work, Result]], worker: Worker | None) -> None:
        started = anyio.current_time()
        keeps_a_lane = self._scheduler.is_rest(jobs[0]) and self._lanes_for_rest(started) == 1
        alone = len(self._workers) == 1 or (not self._running and (keeps_a_lane or not self.waiting))
        self._has_machine = alone and not keeps_a_lane
        share = 1 if alone else len(self._workers)
        self._running[worker] = jobs
        for job in jobs:
            job.timing.started, job.timing.batch_size = started, len(jobs)
            self._tally.queue_time.observe(job.timing.queue_time)
        self._tally.batch_size.observe(len(jobs))
        report = await self._run_in(worker, jobs, alone=alone)
        del self._running[worker]
        self._has_machine = False
        if report is None:
            return
        ended = anyio.current_time()
        for job, answer in zip(jobs, report.answers, strict=True):
            job.timing.ended = ended
            _answer(job, answer)
        self._pace.record(share * sum(job.cost for job in jobs), ended - started)
        if report.oom_cost is not None:
            self._tally.out_of_memory += 1
            self._shrink(report.oom_cost)

    async def _run_in(
        self, worker: Worker | None, jobs: Sequence[Job[Work, Result]], *, alone: bool
    ) -> Report[Result] | None:
        """None: it was stopped, as nobody waited for it any more."""
        run = self._run_alone if alone else self._run_beside
        works, costs = [job.work for job in jobs], [job.cost for job in jobs]
        requests = [job.caller.request_id for job in jobs]
        if worker is None:
            current_requests.set(tuple(requests))
            with anyio.CancelScope() as self._elsewhere:
                elsewhere = cast(RunElsewhere[Work, Result], run)
                return await run_isolated_elsewhere(elsewhere, works, costs, self._is_out_of_memory)
            return None
        isolated = partial(run_isolated, run, works, costs, self._is_out_of_memory, self._release_memory)
        return await worker.run(isolated, requests=requests)

    def _abandon(self) -> None:
        for job in (*chain.from_iterable(self._running.values()), *self._scheduler.clear()):
            job.cancel.cancel()
            _answer(job, ShuttingDown(f"{self.name} was stopped"))
        self._running.clear()


def _is_awaited(job: Job[Work, Result]) -> bool:
    return job.future is not None and not job.future.done()


def _answer(job: Job[Work, Result], answer: Result | Exception) -> None:
    if job.future is None or job.future.done():
        return
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
    else:
        job.future.set_result(answer)
