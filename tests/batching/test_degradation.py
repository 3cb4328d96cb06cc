"""Out-of-memory and poison, without a loop: every forward is counted."""

import gc
import logging
import math
import weakref
from collections.abc import Callable, Sequence

import pytest

from batching.degradation import BatchLimit, Bisection, Failure, Report, attempt, run_isolated
from batching.errors import EngineFailed, OutOfMemory
from tests.batching.fakes import FakeModel, Poison

# BatchLimit


def test_a_failed_batch_halves_the_limit() -> None:
    limit = BatchLimit(800)
    limit.shrink(800, now=0.0)
    assert limit.current(0.0) == 400


def test_the_limit_is_half_of_what_failed_not_of_what_was_allowed() -> None:
    limit = BatchLimit(800)
    limit.shrink(100, now=0.0)
    assert limit.current(0.0) == 50


def test_a_failure_above_the_limit_does_not_raise_it() -> None:
    limit = BatchLimit(800)
    limit.shrink(100, now=0.0)
    limit.shrink(800, now=0.0)
    assert limit.current(0.0) == 50


def test_the_limit_never_reaches_zero() -> None:
    limit = BatchLimit(800)
    for _ in range(20):
        limit.shrink(1, now=0.0)
    assert limit.current(0.0) == 1


@pytest.mark.parametrize(
    ("now", "expected"), [(59.9, 100), (60.0, 200), (119.9, 200), (120.0, 300), (480.0, 800), (100_000.0, 800)]
)
def test_it_grows_by_an_eighth_of_the_maximum_each_cool_down(now: float, expected: int) -> None:
    limit = BatchLimit(800, cool_down=60.0)
    limit.shrink(200, now=0.0)
    assert limit.current(now) == expected


def test_another_failure_starts_the_cool_down_again() -> None:
    limit = BatchLimit(800, cool_down=60.0)
    limit.shrink(400, now=0.0)
    limit.shrink(200, now=50.0)
    assert [limit.current(now) for now in (60.0, 109.9, 110.0)] == [100, 100, 200]


def test_a_failure_after_regrowth_shrinks_what_has_regrown() -> None:
    limit = BatchLimit(800, cool_down=60.0)
    limit.shrink(800, now=0.0)
    limit.shrink(700, now=180.0)
    assert limit.current(180.0) == 350
    assert limit.current(240.0) == 450


def test_a_maximum_below_eight_regrows_by_one() -> None:
    limit = BatchLimit(4, cool_down=60.0)
    limit.shrink(4, now=0.0)
    assert [limit.current(now) for now in (0.0, 60.0, 120.0, 180.0)] == [2, 3, 4, 4]


# Bisection


def search(group: Sequence[str], poison: str) -> tuple[list[str], list[str]]:
    """The culprits found, and the groups tried for it."""
    bisection: Bisection[str] = Bisection()
    culprits, tried = [], []
    bisection.failed(group)
    while bisection.searching:
        group = bisection.next_group()
        tried.append("".join(group))
        if set(group) & set(poison) and (culprit := bisection.failed(group)):
            culprits.append(culprit)
    return culprits, tried


def test_the_halves_are_tried_until_the_poison_is_alone() -> None:
    assert search("abcdefgh", "f") == (["f"], ["efgh", "gh", "ef", "f", "e", "abcd"])


def test_every_poison_is_found() -> None:
    culprits, _ = search("abcdefgh", "agh")
    assert culprits == ["h", "g", "a"]


def test_who_fails_alone_is_the_culprit() -> None:
    bisection: Bisection[str] = Bisection()
    assert bisection.failed("a") == "a"
    assert not bisection.searching


# attempt


def test_even_the_wish_to_exit_comes_back_as_a_value() -> None:
    outcome = attempt(exit_now)
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, SystemExit)


def test_a_failure_says_where_it_happened() -> None:
    outcome = attempt(exit_now)
    assert isinstance(outcome, Failure)
    assert "in exit_now" in outcome.traceback


def exit_now() -> None:
    raise SystemExit(3)


# run_isolated


def is_memory_error(error: BaseException) -> bool:
    return isinstance(error, MemoryError)


def isolated(
    model: Callable[[Sequence[int]], Sequence[int | Exception]],
    works: Sequence[int],
    costs: Sequence[int] | None = None,
    release_memory: Callable[[], None] = lambda: None,
) -> Report[int]:
    return run_isolated(model, works, costs or [1] * len(works), is_memory_error, release_memory)


def kinds(report: Report[int]) -> list[int | type[Exception]]:
    return [type(answer) if isinstance(answer, Exception) else answer for answer in report.answers]


def test_a_healthy_batch_takes_one_forward() -> None:
    model = FakeModel()
    assert isolated(model, [1, 2, 3]) == Report([2, 4, 6])
    assert model.batches == [[1, 2, 3]]


def test_a_batch_that_does_not_fit_is_split_and_everyone_is_answered() -> None:
    model = FakeModel(capacity=7)
    report = isolated(model, [1, 2, 3, 4], costs=[10, 20, 30, 40])
    assert report.answers == [2, 4, 6, 8]
    assert report.oom_cost == 100
    assert model.batches == [[1, 2, 3, 4], [1, 2], [3, 4]]


def test_the_least_cost_that_did_not_fit_is_reported() -> None:
    model = FakeModel(capacity=4)
    report = isolated(model, [1, 2, 3, 4], costs=[10, 20, 30, 40])
    assert report.answers == [2, 4, 6, 8]
    assert report.oom_cost == 70
    assert model.batches == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


def test_a_job_that_does_not_fit_alone_is_told_so() -> None:
    model = FakeModel(capacity=3)
    report = isolated(model, [1, 2, 3, 4], costs=[10, 20, 30, 40])
    assert kinds(report) == [2, 4, 6, OutOfMemory]
    assert report.oom_cost == 40


def test_memory_is_released_after_each_failure_and_before_the_retry() -> None:
    log: list[str] = []

    def model(works: Sequence[int]) -> Sequence[int]:
        log.append(f"run {len(works)}")
        if len(works) > 1:
            raise MemoryError
        return works

    isolated(model, [1, 2, 3], release_memory=lambda: log.append("release"))
    assert log == ["run 3", "release", "run 1", "run 2", "release", "run 1", "run 1"]


def test_a_device_that_cannot_release_memory_is_tried_all_the_same() -> None:
    def fail() -> None:
        raise Poison

    assert isolated(FakeModel(capacity=3), [1, 2, 3], release_memory=fail).answers == [2, 4, 6]


def test_memory_is_not_released_for_any_other_failure() -> None:
    released: list[None] = []
    isolated(FakeModel(poison=[2]), [1, 2], release_memory=lambda: released.append(None))
    assert released == []


class Tensor:
    """Something large that must be gone when the halves are retried."""


Tensors = weakref.WeakSet[Tensor]


def hold_and_fail(tensors: Tensors) -> None:
    tensor = Tensor()
    tensors.add(tensor)
    raise MemoryError


def translate(tensors: Tensors) -> None:
    """As a library does that raises its own words from its backend's error."""
    try:
        hold_and_fail(tensors)
    except MemoryError as error:
        raise MemoryError("out of memory") from error


def translate_later(tensors: Tensors) -> None:
    try:
        hold_and_fail(tensors)
    except MemoryError as error:
        kept = error
    raise MemoryError("out of memory") from kept


def fail_again_while_handling(tensors: Tensors) -> None:
    try:
        hold_and_fail(tensors)
    except MemoryError:
        hold_and_fail(tensors)


@pytest.mark.parametrize("fail", [hold_and_fail, translate, translate_later, fail_again_while_handling])
def test_tensors_of_a_failed_batch_are_dead_when_its_halves_are_retried(fail: Callable[[Tensors], None]) -> None:
    tensors = Tensors()
    alive: list[int] = []

    def model(works: Sequence[int]) -> Sequence[int]:
        alive.append(len(tensors))
        if len(works) > 1:
            fail(tensors)
        return works

    gc.disable()
    try:
        isolated(model, [1, 2, 3, 4])
    finally:
        gc.enable()
    assert alive == [0] * 7


@pytest.mark.parametrize("culprit", range(32))
def test_one_poison_among_32_costs_at_most_ten_forwards_more(culprit: int) -> None:
    model = FakeModel(poison=[culprit])
    report = isolated(model, range(32))
    assert kinds(report) == [EngineFailed if work == culprit else 2 * work for work in range(32)]
    assert len(model.batches) == 1 + 2 * math.log2(32)
    assert report.oom_cost is None


def test_a_broken_engine_fails_everyone_and_is_asked_twice_a_job_at_most() -> None:
    model = FakeModel(poison=range(32))
    assert kinds(isolated(model, range(32))) == [EngineFailed] * 32
    assert len(model.batches) == 2 * 32 - 1


def test_poison_and_out_of_memory_in_one_batch_are_told_apart() -> None:
    report = isolated(FakeModel(poison=[2], capacity=9), [1, 2, 3, 10])
    assert kinds(report) == [2, EngineFailed, 6, OutOfMemory]


def test_an_error_given_as_an_answer_is_that_jobs_alone() -> None:
    error = ValueError("undecodable")
    assert isolated(lambda works: [1, error, 3], [1, 2, 3]).answers == [1, error, 3]


@pytest.mark.parametrize("answers", [[], [1, 2, 3, 4], None])
def test_a_wrong_number_of_answers_is_a_failure_of_the_engine(answers: list[int | Exception]) -> None:
    assert kinds(isolated(lambda works: answers, [1, 2, 3])) == [EngineFailed] * 3


def test_answers_are_never_given_to_the_wrong_job() -> None:
    def forgetful(works: Sequence[int]) -> Sequence[int]:
        return [2 * work for work in works if work != 3]

    assert kinds(isolated(forgetful, [1, 2, 3, 4])) == [2, 4, EngineFailed, 8]


def test_an_engine_that_exits_or_is_interrupted_ends_only_the_job_at_fault() -> None:
    def model(works: Sequence[int]) -> Sequence[int]:
        if 2 in works:
            raise SystemExit(1)
        if 3 in works:
            raise KeyboardInterrupt
        return works

    assert kinds(isolated(model, [1, 2, 3, 4])) == [1, EngineFailed, EngineFailed, 4]


def test_the_cause_and_its_traceback_are_for_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    def model(works: Sequence[int]) -> Sequence[int]:
        raise RuntimeError("secret detail")

    answer = isolated(model, [1]).answers[0]
    assert str(answer) == "the model failed on this request"
    assert isinstance(answer, EngineFailed)
    assert isinstance(answer.__cause__, RuntimeError)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "secret detail" in record.getMessage()
    assert "in model" in record.getMessage()
