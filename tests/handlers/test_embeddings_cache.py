"""The cache of vectors, and equal inputs that are computed once, on a worker that waits for the test."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.batcher import Batcher
from batching.errors import DeadlineExceeded, EngineFailed, QueueFull
from batching.job import Caller, Priority
from batching.limits import Limits
from handlers.embeddings.cache import VectorCache, cache_key, salted
from handlers.embeddings.dimensions import Vector
from handlers.embeddings.types import TokenIds
from handlers.embeddings.vectors import Input, Vectors
from handlers.stats import CacheStats
from tests.batching.fakes import SteppedWorker, serving
from tests.clock import MANUAL_CLOCK, advance, settle

pytestmark = pytest.mark.anyio

ENTRY = 2 * 4 + 320


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


class Model:
    """The vector of token ids is their sum and their number. What is in `bad` fails."""

    def __init__(self) -> None:
        self.batches: list[list[TokenIds]] = []
        self.bad: list[TokenIds] = []

    def __call__(self, works: Sequence[TokenIds]) -> Sequence[Vector | Exception]:
        self.batches.append(list(works))
        return [EngineFailed("bad") if ids in self.bad else vector_of(ids) for ids in works]


def vector_of(ids: TokenIds) -> Vector:
    return np.array([sum(ids), len(ids)], np.float32)


def inputs(*token_ids: TokenIds, salt: str = "") -> list[Input]:
    return [Input(ids, cache_key(ids, salted(salt))) for ids in token_ids]


class Fixture:
    def __init__(self, limits: Limits, max_bytes: int) -> None:
        self.model = Model()
        self.worker = SteppedWorker()
        self.batcher = Batcher("m", self.model, limits, worker=self.worker)
        self.vectors = Vectors(self.batcher, VectorCache(max_bytes) if max_bytes else None)

    def ask(self, *token_ids: TokenIds, salt: str = "", caller: Caller | None = None) -> "asyncio.Task[list[Vector]]":
        return asyncio.create_task(self.vectors.of(inputs(*token_ids, salt=salt), caller or Caller()))

    async def step(self) -> None:
        """The worker runs one batch."""
        self.worker.let_through()
        await settle()

    async def answer(self, *token_ids: TokenIds, salt: str = "") -> list[Vector]:
        task = self.ask(*token_ids, salt=salt)
        await settle()
        while not task.done():
            await self.step()
        return task.result()


@asynccontextmanager
async def fixture(limits: Limits = Limits(), max_bytes: int = 1 << 20) -> AsyncIterator[Fixture]:  # noqa: B008 - frozen
    made = Fixture(limits, max_bytes)
    async with serving(made.batcher):
        yield made


async def test_what_was_computed_is_not_computed_again() -> None:
    async with fixture() as f:
        await f.answer([1], [2])
        again = await f.answer([2], [3], [1])
    assert f.model.batches == [[[1], [2]], [[3]]]
    assert [vector.tolist() for vector in again] == [[2, 1], [3, 1], [1, 1]]
    assert f.vectors.stats == CacheStats(hits=2, misses=3, entries=3, bytes=3 * ENTRY)


async def test_equal_inputs_of_one_request_are_computed_once() -> None:
    async with fixture() as f:
        vectors = await f.answer([1], [2], [1], [1])
    assert f.model.batches == [[[1], [2]]]
    assert [vector[0] for vector in vectors] == [1, 2, 1, 1]
    assert f.vectors.stats == CacheStats(hits=2, misses=2, entries=2, bytes=2 * ENTRY)


async def test_equal_inputs_of_several_requests_are_computed_once() -> None:
    async with fixture() as f:
        tasks = [f.ask([1], [2]), f.ask([2]), f.ask([1], [3])]
        await settle()
        await f.step()
    assert f.model.batches == [[[1], [2], [3]]]
    assert [[vector[0] for vector in task.result()] for task in tasks] == [[1, 2], [2], [1, 3]]
    assert f.vectors.stats == CacheStats(hits=2, misses=3, entries=3, bytes=3 * ENTRY)


async def test_what_is_cached_needs_no_place_in_a_full_queue() -> None:
    async with fixture(Limits(max_queue_size=1, max_batch_size=1)) as f:
        await f.answer([1])
        busy = f.ask([2])
        await settle()
        waiting = f.ask([3])
        await settle()
        cached, refused = f.ask([1]), f.ask([4])
        await settle()
        assert [vector[0] for vector in cached.result()] == [1]
        assert isinstance(refused.exception(), QueueFull)
        f.worker.open()
        await asyncio.gather(busy, waiting)


async def test_a_first_asker_who_leaves_does_not_take_the_answer_along() -> None:
    async with fixture() as f:
        first = f.ask([1], [2])
        await settle()
        second, third = f.ask([1]), f.ask([1])
        await settle()
        first.cancel()
        await settle()
        f.worker.open()
        vectors = await second + await third
    assert [vector[0] for vector in vectors] == [1, 1]
    assert f.model.batches[-1] == [[1]]  # one of the two computes, the other waits for it
    assert len(f.model.batches) == 2


async def test_who_waits_and_leaves_does_not_disturb_the_one_who_computes() -> None:
    async with fixture() as f:
        first, second = f.ask([1]), f.ask([1])
        await settle()
        second.cancel()
        await settle()
        await f.step()
        assert second.cancelled()
        assert [vector[0] for vector in first.result()] == [1]


async def test_a_first_asker_who_fails_leaves_the_others_to_compute_for_themselves() -> None:
    async with fixture() as f:
        f.model.bad = [[1]]
        first, second, third = f.ask([1]), f.ask([1], [2]), f.ask([1])
        await settle()
        await f.step()
        assert isinstance(first.exception(), EngineFailed)
        f.model.bad = []
        f.worker.open()
        vectors = await second + await third
    assert [vector[0] for vector in vectors] == [1, 2, 1]
    assert f.model.batches[-1] == [[1], [1]]  # both at once: nobody waits for a key that has failed


async def test_failures_are_not_kept_and_their_neighbours_are() -> None:
    async with fixture() as f:
        f.model.bad = [[1]]
        with pytest.raises(EngineFailed):
            await f.answer([2], [1], [3])
        assert f.vectors.stats == CacheStats(hits=0, misses=3, entries=2, bytes=2 * ENTRY)
        await f.answer([2], [3])
    assert f.model.batches == [[[2], [1], [3]]]


async def test_waiting_for_another_request_ends_at_ones_own_deadline() -> None:
    async with fixture() as f:
        first = f.ask([1])
        await settle()
        second = f.ask([1], caller=Caller(deadline=anyio.current_time() + 5))
        await settle()
        await advance(6)
        assert isinstance(second.exception(), DeadlineExceeded)
        await f.step()
        assert first.done() and not first.exception()


async def test_a_deadline_of_the_first_asker_is_not_the_others() -> None:
    async with fixture() as f:
        busy = f.ask([9])
        await settle()
        first = f.ask([1], caller=Caller(deadline=anyio.current_time() + 5))
        await settle()
        second = f.ask([1])
        await settle()
        await advance(6)
        f.worker.open()
        assert [vector[0] for vector in await second] == [1]
        assert isinstance(first.exception(), DeadlineExceeded)
        await busy


async def test_equal_requests_of_many_batches_are_computed_once() -> None:
    async with fixture(Limits(max_batch_size=2, max_batch_cost=2)) as f:
        several = [f.ask(*[[i] for i in range(1, 8)]) for _ in range(3)]
        f.worker.open()
        answers = await asyncio.gather(*several)
    assert [[vector[0] for vector in answer] for answer in answers] == [list(range(1, 8))] * 3
    assert [ids for batch in f.model.batches for ids in batch] == [[i] for i in range(1, 8)]


async def test_nobody_waits_for_the_late_part_of_a_long_request() -> None:
    async with fixture(Limits(max_batch_size=2, max_batch_cost=2)) as f:
        long = f.ask(*[[i] for i in range(1, 11)])
        await settle()
        short = f.ask([10])
        await settle()
        for _ in range(3):
            await f.step()
        assert [vector[0] for vector in short.result()] == [10]
        assert f.model.batches == [[[1], [2]], [[10], [3]], [[4], [5]]]
        f.worker.open()
        assert [vector[0] for vector in await long] == list(range(1, 11))


async def test_nobody_waits_for_whom_they_should_overtake() -> None:
    async with fixture(Limits(max_batch_size=1)) as f:
        busy = f.ask([9])
        await settle()
        patient = f.ask([8], [1], caller=Caller(priority=Priority.BACKGROUND))
        await settle()
        urgent = f.ask([1])
        await settle()
        for _ in range(2):
            await f.step()
        assert busy.done() and urgent.done() and not patient.done()
        f.worker.open()
        await patient


async def test_who_has_another_salt_knows_of_nothing() -> None:
    async with fixture() as f:
        await f.answer([1], salt="a")
        await f.answer([1], salt="b")
        first, second = f.ask([2], salt="a"), f.ask([2], salt="b")
        f.worker.open()
        await asyncio.gather(first, second)
    assert [ids for batch in f.model.batches for ids in batch] == [[1], [1], [2], [2]]


async def test_without_a_cache_every_input_is_computed() -> None:
    async with fixture(max_bytes=0) as f:
        for _ in range(2):
            await f.answer([1], [1])
    assert f.model.batches == [[[1], [1]], [[1], [1]]]
    assert f.vectors.stats is None


async def test_a_refused_request_leaves_nothing_for_others_to_wait_for() -> None:
    async with fixture(Limits(max_queue_size=1, max_batch_size=1)) as f:
        busy = f.ask([8])
        await settle()
        waiting = f.ask([9])
        await settle()
        refused = f.ask([1])
        await settle()
        assert isinstance(refused.exception(), QueueFull)
        f.worker.open()
        await asyncio.gather(busy, waiting)
        assert [vector[0] for vector in await f.ask([1])] == [1]


def filled(cache: VectorCache, *names: bytes) -> VectorCache:
    for name in names:
        cache.put(name, np.zeros(2, np.float32))
    return cache


def test_the_least_recently_used_goes_first() -> None:
    cache = filled(VectorCache(2 * ENTRY), b"a", b"b")
    assert cache.get(b"a") is not None
    filled(cache, b"c")
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    assert (len(cache), cache.bytes) == (2, 2 * ENTRY)


def test_entries_are_bounded_too() -> None:
    assert len(filled(VectorCache(1 << 20, max_entries=2), b"a", b"b", b"c")) == 2


def test_a_vector_above_the_bound_is_not_kept_and_costs_nothing() -> None:
    cache = filled(VectorCache(ENTRY - 1), b"a")
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_row_does_not_keep_its_batch_in_memory_and_cannot_be_changed() -> None:
    cache, batch = VectorCache(1 << 20), np.ones((1000, 2), np.float32)
    cache.put(b"a", batch[1])
    batch[:] = 5
    kept = cache.get(b"a")
    assert kept is not None and kept.base is None and kept.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


def test_keys_tell_tokens_and_salts_apart() -> None:
    keys = [cache_key(ids, salted(salt)) for ids in ([1], [2], [1, 2], [2, 1], [258]) for salt in ("", "a", "b" * 300)]
    assert len(set(keys)) == len(keys)
    assert cache_key([1, 2], salted("a")) == cache_key((1, 2), salted("a"))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.integers(1, 6))), st.integers(0, 5000))
def test_whatever_is_put_the_bounds_hold_and_the_account_is_right(
    puts: list[tuple[bytes, int]], max_bytes: int
) -> None:
    cache = VectorCache(max_bytes, max_entries=7)
    for name, dimensions in puts:
        cache.put(name, np.zeros(dimensions, np.float32))
        assert cache.bytes <= max_bytes and len(cache) <= 7
        assert bool(cache.bytes) == bool(len(cache))
