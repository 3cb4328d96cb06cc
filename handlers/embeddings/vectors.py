"""Inputs to vectors, each computed once: from the cache, from a computation on its way, or by the batcher."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import anyio

from batching.batcher import Batcher
from batching.errors import DeadlineExceeded
from batching.job import Caller, Job
from handlers.embeddings.cache import VectorCache
from handlers.embeddings.dimensions import Vector
from handlers.embeddings.types import TokenIds
from handlers.stats import CacheStats


class Input(NamedTuple):
    """key: the same for inputs of the same vector that may know of each other."""

    token_ids: TokenIds
    key: bytes


@dataclass(eq=False, slots=True)
class _Flight:
    """A job on its way. turn: how many of the scheduler's turns of its own request are before it."""

    job: Job[TokenIds, Vector]
    turn: int

    def is_no_later_than(self, turn: int, caller: Caller) -> bool:
        """Whether it comes no later than a job for `caller` with so many turns of the same request before it.

        It was there first, so of two with equally much before them it has the earlier turn.
        """
        if self.job.caller.priority > caller.priority:
            return False
        return self.turn <= turn or self.job.timing.started is not None


class Vectors:
    """On the event loop. Whoever waits for another's job does not depend on it: if that fails, it computes for itself.

    cache: None computes every input.
    """

    def __init__(self, batcher: Batcher[TokenIds, Vector], cache: VectorCache | None) -> None:
        self._batcher = batcher
        self._cache = cache
        self._flights: dict[bytes, _Flight] = {}
        self._hits = self._misses = 0

    @property
    def stats(self) -> CacheStats | None:
        """None without a cache."""
        if self._cache is None:
            return None
        return CacheStats(self._hits, self._misses, len(self._cache), self._cache.bytes)

    async def of(self, inputs: Sequence[Input], caller: Caller) -> list[Vector]:
        """One vector an input, read-only. Raises as Batcher.submit_all, also for what another request computes."""
        if self._cache is None:
            return await self._batcher.submit_all([_job(item, caller) for item in inputs])
        found = {item.key: vector for item in inputs if (vector := self._cache.get(item.key)) is not None}
        wanted = {item.key: item for item in inputs if item.key not in found}
        failed: set[bytes] = set()
        computed = 0
        while wanted:
            own, shared = self._divide(wanted.values(), failed, caller)
            computed += len(own)
            found |= await self._compute(own)
            found |= await _wait_for(shared, failed, caller)
            wanted = {key: item for key, item in wanted.items() if key not in found}
        self._hits += len(inputs) - computed
        return [found[item.key] for item in inputs]

    def _divide(
        self, wanted: Iterable[Input], failed: set[bytes], caller: Caller
    ) -> tuple[Mapping[bytes, _Flight], Mapping[bytes, _Flight]]:
        """What to compute, and whose jobs to wait for. failed: keys that are not waited for again."""
        own: dict[bytes, _Flight] = {}
        shared: dict[bytes, _Flight] = {}
        a_turn = self._batcher.limits.turn_cost
        before = computed = 0
        for item in wanted:
            other = self._flights.get(item.key)
            if other and item.key not in failed and other.is_no_later_than(before // a_turn, caller):
                shared[item.key] = other
            else:
                own[item.key] = _Flight(_job(item, caller), computed // a_turn)
                computed += len(item.token_ids)
            before += len(item.token_ids)
        return own, shared

    async def _compute(self, own: Mapping[bytes, _Flight]) -> dict[bytes, Vector]:
        if not own:
            return {}
        self._misses += len(own)
        # No await until submit_all has made the futures: others find a job here only with its future.
        self._flights |= own
        try:
            vectors = await self._batcher.submit_all([flight.job for flight in own.values()])
        finally:
            for key, flight in own.items():
                self._land(key, flight)
        return dict(zip(own, vectors, strict=True))

    def _land(self, key: bytes, flight: _Flight) -> None:
        """What was computed is kept, even if the request it was for has failed."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        future = flight.job.future
        if self._cache is not None and future and future.done() and not future.cancelled() and not future.exception():
            self._cache.put(key, future.result())


async def _wait_for(shared: Mapping[bytes, _Flight], failed: set[bytes], caller: Caller) -> dict[bytes, Vector]:
    """The vectors of others' jobs. Those that fail are added to `failed`; of a withdrawn one nothing is known.

    Raises DeadlineExceeded at the deadline of this caller.
    """
    futures = {key: flight.job.future for key, flight in shared.items() if flight.job.future}
    deadline = math.inf if caller.deadline is None else caller.deadline
    with anyio.CancelScope(deadline=deadline) as scope:
        # Not awaited themselves: a caller that is cancelled would cancel what it awaits.
        if pending := {future for future in futures.values() if not future.done()}:
            await asyncio.wait(pending)
    if scope.cancelled_caught:
        raise DeadlineExceeded("the deadline passed before the result was there")
    ended = {key: future for key, future in futures.items() if not future.cancelled()}
    failed |= {key for key, future in ended.items() if future.exception()}
    return {key: future.result() for key, future in ended.items() if key not in failed}


def _job(item: Input, caller: Caller) -> Job[TokenIds, Vector]:
    return Job(item.token_ids, caller, cost=len(item.token_ids))
