"""What batch loops do, as plain numbers. Counting costs a few additions; nobody who watches is known here."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, ShuttingDown

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
JOBS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Outcome(StrEnum):
    """How a job ended.

    rejected: the engine found the job's own input at fault. cancelled: nobody waited for it any more. stopped: by the
    end of the process.
    """

    COMPLETED = "completed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    STOPPED = "stopped"


_BY_ERROR: Sequence[tuple[type[BaseException], Outcome]] = (
    (DeadlineExceeded, Outcome.EXPIRED),
    (OutOfMemory, Outcome.OUT_OF_MEMORY),
    (EngineFailed, Outcome.FAILED),
    (ShuttingDown, Outcome.STOPPED),
)


def outcome_of(error: BaseException | None) -> Outcome:
    """Of a job that was answered with `error`; None is a result."""
    if error is None:
        return Outcome.COMPLETED
    return next((outcome for kind, outcome in _BY_ERROR if isinstance(error, kind)), Outcome.REJECTED)


@dataclass(frozen=True, slots=True)
class HistogramStats:
    """counts: of the values up to each bound, from above the one before it; the last one is of those above all."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


class Histogram:
    """How often values of which size were seen. bounds: ascending upper bounds, each included."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def stats(self) -> HistogramStats:
        return HistogramStats(self._bounds, tuple(self._counts), self._sum)


class Restart(StrEnum):
    """Why a process was started again: it ended by itself, or was killed with a call that nobody waited for."""

    CRASHED = "crashed"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """A process of its own. running: whether it takes calls; while it is started again, they wait.

    restarts: how often that was tried. broken: why it is not any more.
    """

    running: bool
    restarts: Mapping[Restart, int]
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What only step-wise batches have.

    tokens: generated. preempted: how often a job went back into the queue. time_to_first_token: seconds from when a job
    was admitted to the queue. inter_token: seconds from one token of an answer to its next.
    """

    tokens: int
    preempted: int
    time_to_first_token: HistogramStats
    inter_token: HistogramStats


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One batch loop: what waits and runs now, and what has happened since it was made. Costs are in its own unit.

    cost_limit: what may run together now, after out-of-memory less than configured. refused: requests for which the
    queue was full. out_of_memory: batches, or steps, that did not fit. batch_size: jobs in each batch, or step.
    queue_time: seconds that jobs waited before they first ran. predicted_wait: seconds until what waits now is done, at
    the present pace.
    """

    waiting: int
    waiting_cost: int
    running: int
    cost_limit: int
    refused: int
    out_of_memory: int
    outcomes: Mapping[Outcome, int]
    batch_size: HistogramStats
    queue_time: HistogramStats
    generation: GenerationStats | None = None
    predicted_wait: float = 0.0


class Tally:
    """What a batch loop has counted so far."""

    def __init__(self) -> None:
        self.refused = 0
        self.out_of_memory = 0
        self.preempted = 0
        self.tokens = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.batch_size = Histogram(JOBS)
        self.queue_time = Histogram(SECONDS)
        self.time_to_first_token = Histogram(SECONDS)
        self.inter_token = Histogram(SECONDS)
