"""Step-wise batches: requests join a running batch, step together, and leave it at any step.

Continuous batching (Yu et al., Orca, OSDI 2022). The loop decides; the engine, in the worker thread, computes one step.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol

import anyio

from batching.degradation import Bisection, Failure, attempt, is_memory_error, job_error
from batching.errors import DeadlineExceeded, ShuttingDown
from batching.job import Job
from batching.limits import Limits
from batching.loop import BatchLoop
from batching.stats import BatchStats, GenerationStats, Outcome, outcome_of
from batching.stream import Prompt, StreamGroup, Token, TokenStream
from batching.worker import Worker

_MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Joining(Generic[Prompt, Token]):
    """A request that enters the batch. `generated` is not empty when it was preempted: resume after it."""

    id: int
    prompt: Prompt
    generated: Sequence[Token]


@dataclass(frozen=True, slots=True)
class StepOutput(Generic[Token]):
    """One row's outcome of a step. With `finish_reason` or `error` the engine has dropped the row."""

    id: int
    token: Token | None = None
    finish_reason: str | None = None
    error: Exception | None = None

    @property
    def dropped(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class StepEngine(Protocol[Prompt, Token]):
    """Called in the worker thread only, one call at a time."""

    def step(self, joining: Sequence[Joining[Prompt, Token]], leaving: Sequence[int]) -> Sequence[StepOutput[Token]]:
        """Drop the rows `leaving`, take in those `joining`, and give one more token to every row.

        A row whose prompt is long may need several steps before its first token; until then it has no output.
        """

    def reset(self) -> None:
        """Drop every row; what a failed step held is released."""


class ContinuousBatcher(BatchLoop[Job[Prompt, Token]], Generic[Prompt, Token]):
    """Runs an engine step by step over whoever is there.

    A job's cost is what it may hold at most: tokens of prompt and answer. `limits.max_batch_size` rows of
    `limits.max_batch_cost` together run at once; out-of-memory lowers the latter and preempts the youngest.
    """

    def __init__(
        self,
        name: str,
        engine: StepEngine[Prompt, Token],
        limits: Limits,
        *,
        worker: Worker,
        is_out_of_memory: Callable[[BaseException], bool] = is_memory_error,
    ) -> None:
        super().__init__(name, limits)
        self.steps = 0
        self._engine = engine
        self._worker = worker
        self._is_out_of_memory = is_out_of_memory
        self._ids = itertools.count()
        self._streams: dict[Job[Prompt, Token], TokenStream[Prompt, Token]] = {}
        self._running: dict[int, TokenStream[Prompt, Token]] = {}
        self._leaving: list[int] = []
        self._ended_cost = 0
        self._seconds_since_end = 0.0
        self._suspects: Bisection[TokenStream[Prompt, Token]] = Bisection()
        self._on_trial = False

    @property
    def running(self) -> int:
        return len(self._running)

    def stats(self) -> BatchStats:
        generation = GenerationStats(
            tokens=self._tally.tokens,
            preempted=self._tally.preempted,
            time_to_first_token=self._tally.time_to_first_token.stats(),
            inter_token=self._tally.inter_token.stats(),
        )
        return replace(super().stats(), generation=generation)

    def open(self, job: Job[Prompt, Token]) -> TokenStream[Prompt, Token]:
        """Admit the job; its tokens come through the stream. Raises QueueFull or ShuttingDown.

        Whoever opens the stream closes it (`async with`): that is what frees the row when a client leaves.
        """
        return self.open_all([job]).streams[0]

    def open_all(self, jobs: Sequence[Job[Prompt, Token]]) -> StreamGroup[Prompt, Token]:
        """Admit all the jobs of one request, or none."""
        self._enqueue(jobs)
        arrived = asyncio.Event()
        streams = [TokenStream(next(self._ids), job, self._close, arrived) for job in jobs]
        self._streams.update(zip(jobs, streams, strict=True))
        return StreamGroup(streams, arrived)

    @property
    def _busy(self) -> bool:
        return bool(self._streams)

    async def _serve(self) -> None:
        while True:
            await self._turn()

    async def _turn(self) -> None:
        """Admit, step, deliver."""
        joining = self._next_suspects() or self._admit()
        if self._running or self._leaving:
            await self._step(joining)
        else:
            await self._next_change()

    def _next_suspects(self) -> Sequence[TokenStream[Prompt, Token]]:
        """The group that is tried alone now; empty when no poison is searched."""
        self._on_trial = False
        while self._suspects.searching:
            if group := [stream for stream in self._suspects.next_group() if stream.job in self._streams]:
                self._on_trial = True
                return self._join(group)
        return ()

    def _admit(self) -> Sequence[TokenStream[Prompt, Token]]:
        """Those at the head of the queue for whom there is room."""
        now = anyio.current_time()
        self._make_room(now)
        batch = self._scheduler.next_batch(
            now,
            max_size=self._free_rows,
            max_cost=self._free_cost(now),
            alone=not self._running,
        )
        for job in batch.expired:
            self._fail(self._streams[job], DeadlineExceeded("the deadline passed while the request waited"))
        return self._join([self._streams[job] for job in batch.jobs])

    def _make_room(self, now: float) -> None:
        """Preempt rows of lower priority, the youngest first, if that lets the first in the queue run.

        They resume where they were, ahead of their own kind.
        """
        first = self._scheduler.first(now)
        if first is None:
            return
        preempted: list[TokenStream[Prompt, Token]] = []
        rows, cost = self._free_rows, self._free_cost(now)
        for stream in reversed(self._running.values()):
            if rows >= 1 and cost >= first.cost:
                break
            if stream.job.caller.priority > first.caller.priority:
                preempted.append(stream)
                rows, cost = rows + 1, cost + stream.job.cost
        if rows >= 1 and (cost >= first.cost or len(preempted) == len(self._running)):
            self._preempt(preempted)

    @property
    def _free_rows(self) -> int:
        return self.limits.max_batch_size - len(self._running)

    def _free_cost(self, now: float) -> int:
        return self._limit.current(now) - sum(stream.job.cost for stream in self._running.values())

    def _join(self, streams: Sequence[TokenStream[Prompt, Token]]) -> Sequence[TokenStream[Prompt, Token]]:
        now = anyio.current_time()
        for stream in streams:
            self._running[stream.id] = stream
            timing = stream.job.timing
            if timing.started is None:
                timing.started = now
                self._tally.queue_time.observe(timing.queue_time)
            timing.batch_size = len(self._running)
        return streams

    async def _step(self, joining: Sequence[TokenStream[Prompt, Token]]) -> None:
        leaving, self._leaving = self._leaving, []
        stepping = list(self._running.values())
        if stepping:  # else the step only drops those who left
            self._tally.batch_size.observe(len(stepping))
        entries = [Joining(stream.id, stream.job.work, tuple(stream.generated)) for stream in joining]
        started = anyio.current_time()
        outcome = await self._in_worker(stepping, entries, leaving)
        self.steps += 1
        self._seconds_since_end += anyio.current_time() - started
        if isinstance(outcome, Failure):
            await self._recover(stepping, outcome)
            return
        self._deliver(outcome)
        self._record_pace()
        if self._suspects.searching:
            self._preempt(stepping)
        elif not self._on_trial:
            _clear_of_suspicion(stepping)

    def _record_pace(self) -> None:
        """In the unit of what waits: the cost of those who ended, over the time since somebody last did."""
        if self._ended_cost:
            self._pace.record(self._ended_cost, self._seconds_since_end)
            self._ended_cost, self._seconds_since_end = 0, 0.0

    async def _in_worker(
        self,
        stepping: Sequence[TokenStream[Prompt, Token]],
        entries: Sequence[Joining[Prompt, Token]],
        leaving: Sequence[int],
    ) -> Sequence[StepOutput[Token]] | Failure:
        requests = [stream.job.caller.request_id for stream in stepping]
        return await self._worker.run(attempt, self._engine.step, entries, leaving, requests=requests)

    def _deliver(self, outputs: Sequence[StepOutput[Token]]) -> None:
        dropped = {output.id for output in outputs if output.dropped}
        self._leaving = [id for id in self._leaving if id not in dropped]  # closed in the very step that ended them
        now = anyio.current_time()
        for output in outputs:
            stream = self._running.get(output.id)
            if stream is None:  # closed while the step ran
                continue
            if output.token is not None:
                stream.push(output.token)
                self._count_token(stream, now)
            if output.error is not None:
                self._fail(stream, output.error)
            elif output.finish_reason is not None:
                stream.finish(output.finish_reason)
                self._forget(stream, Outcome.COMPLETED)

    def _count_token(self, stream: TokenStream[Prompt, Token], now: float) -> None:
        self._tally.tokens += 1
        if stream.token_at is None:
            self._tally.time_to_first_token.observe(now - stream.job.timing.arrived)
        else:
            self._tally.inter_token.observe(now - stream.token_at)
        stream.token_at = now

    async def _recover(self, stepping: Sequence[TokenStream[Prompt, Token]], failure: Failure) -> None:
        """A failed step delivered nothing, so every row resumes from what it has, in smaller company.

        stepping: all that ran, also who left meanwhile: the blame is shared among them.
        """
        reset = await self._worker.run(attempt, self._engine.reset)
        self._leaving.clear()
        self._running.clear()
        if not stepping:
            return
        if isinstance(reset, Failure):  # whatever the engine still holds, these rows cannot be resumed
            self._fail_all(stepping, reset)
        elif not self._is_out_of_memory(failure.error):
            self._isolate(stepping, failure)
        else:
            self._back_off(stepping, failure)

    def _back_off(self, stepping: Sequence[TokenStream[Prompt, Token]], failure: Failure) -> None:
        """Out of memory: less runs from now on. Who does not even fit alone is told."""
        self._tally.out_of_memory += 1
        if len(stepping) == 1:
            self._fail(stepping[0], job_error(failure, out_of_memory=True))
            return
        self._shrink(sum(stream.job.cost for stream in stepping))
        self._preempt(stepping)

    def _isolate(self, stepping: Sequence[TokenStream[Prompt, Token]], failure: Failure) -> None:
        if not self._on_trial:
            self._fail_all(_repeat_offenders(stepping), failure)
        culprit = self._suspects.failed(stepping)
        if culprit is not None:
            self._fail(culprit, job_error(failure, out_of_memory=False))
            _clear_of_suspicion(self._streams.values())

    def _preempt(self, streams: Sequence[TokenStream[Prompt, Token]]) -> None:
        """Back to the head of the queue, oldest first, with what they have generated."""
        preempted = sorted((s for s in streams if s.job in self._streams), key=lambda stream: stream.id)
        for stream in preempted:
            if self._running.pop(stream.id, None) is not None:
                self._leaving.append(stream.id)
        self._tally.preempted += len(preempted)
        self._scheduler.requeue([stream.job for stream in preempted])

    def _fail_all(self, streams: Sequence[TokenStream[Prompt, Token]], failure: Failure) -> None:
        for stream in streams:
            self._fail(stream, job_error(failure, out_of_memory=False))

    def _fail(self, stream: TokenStream[Prompt, Token], error: Exception) -> None:
        if stream.job in self._streams:
            stream.fail(error)
            self._forget(stream, outcome_of(error))

    def _close(self, stream: TokenStream[Prompt, Token], outcome: Outcome) -> None:
        if stream.job not in self._streams:
            return
        if not self._scheduler.abort(stream.job) and stream.id in self._running:
            self._leaving.append(stream.id)
        self._forget(stream, outcome)

    def _forget(self, stream: TokenStream[Prompt, Token], outcome: Outcome) -> None:
        self._tally.outcomes[outcome] += 1
        if self._running.pop(stream.id, None) is not None:
            self._ended_cost += stream.job.cost
        self._streams.pop(stream.job, None)
        stream.job.timing.ended = anyio.current_time()
        self._signal()

    def _abandon(self) -> None:
        self._scheduler.clear()
        for stream in list(self._streams.values()):
            self._fail(stream, ShuttingDown(f"{self.name} was stopped"))


def _repeat_offenders(streams: Sequence[TokenStream[Prompt, Token]]) -> Sequence[TokenStream[Prompt, Token]]:
    """Those that keep failing, but only together: no search finds them, and they are not retried for ever."""
    for stream in streams:
        stream.failures += 1
    return [stream for stream in streams if stream.failures > _MAX_FAILURES]


def _clear_of_suspicion(streams: Iterable[TokenStream[Prompt, Token]]) -> None:
    for stream in streams:
        stream.failures = 0
