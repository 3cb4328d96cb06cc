"""Out-of-memory and poison: how a batch gets smaller, and how one bad item never fails its neighbours."""

import logging
import traceback
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from batching.errors import EngineFailed, OutOfMemory, ProcessBroken, ShuttingDown

Work = TypeVar("Work")
Result = TypeVar("Result")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_GROWTH_STEPS = 8


class BatchLimit:
    """The largest cost that may run together now: halved on out-of-memory, grown back after a cool-down.

    Additive increase, multiplicative decrease (Chiu and Jain 1989): one eighth of the maximum for every `cool_down`
    seconds without another out-of-memory.
    """

    def __init__(self, maximum: int, *, cool_down: float = 60.0) -> None:
        self.maximum = maximum
        self.cool_down = cool_down
        self._limit = maximum
        self._grows_at = 0.0

    def current(self, now: float) -> int:
        while self._limit < self.maximum and now >= self._grows_at:
            self._limit = min(self.maximum, self._limit + max(1, self.maximum // _GROWTH_STEPS))
            self._grows_at += self.cool_down
        return self._limit

    def shrink(self, failed_cost: int, now: float) -> None:
        """A batch of `failed_cost` did not fit."""
        self._limit = max(1, min(self.current(now), failed_cost // 2))
        self._grows_at = now + self.cool_down


class Bisection(Generic[T]):
    """The search for the poison among those that ran when the engine failed: halves, until one is alone.

    The later half is tried first: who passes goes back to the head of the queue, so the earliest must pass last.
    """

    def __init__(self) -> None:
        self._groups: list[Sequence[T]] = []

    @property
    def searching(self) -> bool:
        return bool(self._groups)

    def failed(self, group: Sequence[T]) -> T | None:
        """The group failed together. Returns the culprit when it was alone, else lines the halves up."""
        if len(group) == 1:
            return group[0]
        middle = len(group) // 2
        self._groups += [group[:middle], group[middle:]]
        return None

    def next_group(self) -> Sequence[T]:
        """The group to try alone next."""
        return self._groups.pop()


def is_memory_error(error: BaseException) -> bool:
    """For engines that keep their memory to themselves."""
    return isinstance(error, MemoryError)


@dataclass(slots=True)
class Failure:
    """An exception brought back as a value, so that nothing escapes a worker thread. traceback: for the log."""

    error: BaseException
    traceback: str


_Tried: TypeAlias = Sequence[Result | Exception] | Failure | None


def attempt(function: Callable[..., T], *args: object) -> T | Failure:
    """Call `function` and bring whatever it raises back as a value."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001 - nothing escapes a worker thread
        return _failure(error)


def _failure(error: BaseException) -> Failure:
    logger.debug("the engine raised", exc_info=True)
    failure = Failure(error, traceback.format_exc())
    _drop_frames(error)
    return failure


def _drop_frames(error: BaseException) -> None:
    """Frames would keep the failed batch's tensors alive while its halves are retried."""
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]


@dataclass(slots=True)
class Report(Generic[Result]):
    """answers: one a work, in order; an Exception is that work's error. oom_cost: the least cost that did not fit."""

    answers: list[Result | Exception]
    oom_cost: int | None = None


def run_isolated(
    run: Callable[[Sequence[Work]], Sequence[Result | Exception]],
    works: Sequence[Work],
    costs: Sequence[int],
    is_out_of_memory: Callable[[BaseException], bool],
    release_memory: Callable[[], None],
) -> Report[Result]:
    """Run a batch in the worker thread; on out-of-memory or failure retry its halves, down to the item at fault."""
    report: Report[Result] = Report([])
    search = _search(report, works, costs, is_out_of_memory)
    tried: _Tried[Result] = None
    while (group := _next_group(search, tried)) is not None:
        tried = attempt(_run_checked, run, group)
        if isinstance(tried, Failure) and is_out_of_memory(tried.error):
            attempt(release_memory)
    return report


async def run_isolated_elsewhere(
    run: Callable[[Sequence[Work]], Awaitable[Sequence[Result | Exception]]],
    works: Sequence[Work],
    costs: Sequence[int],
    is_out_of_memory: Callable[[BaseException], bool],
) -> Report[Result]:
    """As `run_isolated`, for a model in another process. Cancelling it cancels `run`, and nothing is tried again."""
    report: Report[Result] = Report([])
    search = _search(report, works, costs, is_out_of_memory)
    tried: _Tried[Result] = None
    while (group := _next_group(search, tried)) is not None:
        try:
            tried = _checked(await run(group), group)
        except Exception as error:  # noqa: BLE001 - the search's, whatever it is
            tried = _failure(error)
    return report


def _search(
    report: Report[Result],
    works: Sequence[Work],
    costs: Sequence[int],
    is_out_of_memory: Callable[[BaseException], bool],
) -> Generator[Sequence[Work], _Tried[Result], None]:
    """Yields who is to run together, is sent what became of them, and fills the report."""
    groups = [range(len(works))]
    while groups:
        group = groups.pop()
        answers = yield [works[i] for i in group]
        assert answers is not None
        if not isinstance(answers, Failure):
            report.answers.extend(answers)
            continue
        if isinstance(answers.error, ProcessBroken | ShuttingDown):  # nobody could do better alone
            report.answers.extend([answers.error] * (len(works) - len(report.answers)))
            return
        if out_of_memory := is_out_of_memory(answers.error):
            cost = sum(costs[i] for i in group)
            report.oom_cost = cost if report.oom_cost is None else min(cost, report.oom_cost)
        if len(group) == 1:
            report.answers.append(job_error(answers, out_of_memory=out_of_memory))
        else:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]


def _next_group(
    search: Generator[Sequence[Work], _Tried[Result], None], tried: _Tried[Result]
) -> Sequence[Work] | None:
    """None at the end."""
    try:
        return search.send(tried)
    except StopIteration:
        return None


def job_error(failure: Failure, *, out_of_memory: bool) -> Exception:
    """What the one job at fault is told; the cause stays in the log."""
    if out_of_memory:
        answer: Exception = OutOfMemory("the request does not fit into the device's memory")
    else:
        answer = EngineFailed("the model failed on this request")
        logger.error("the engine failed on one job\n%s", failure.traceback)
    answer.__cause__ = failure.error
    return answer


def _run_checked(
    run: Callable[[Sequence[Work]], Sequence[Result | Exception]], works: Sequence[Work]
) -> Sequence[Result | Exception]:
    return _checked(run(works), works)


def _checked(answers: Sequence[Result | Exception], works: Sequence[Work]) -> Sequence[Result | Exception]:
    if len(answers) != len(works):
        raise RuntimeError(f"the engine gave {len(answers)} answers for {len(works)} jobs")
    return answers
