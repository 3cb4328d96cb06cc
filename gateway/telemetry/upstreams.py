"""What has become of requests that went to upstreams, or might have gone there."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

from batching.stats import SECONDS, Histogram, HistogramStats
from proxy.breaker import BreakerState
from proxy.routing import Reason, Target

_STATUSES = {status: str(status) for status in map(int, HTTPStatus)}


class UpstreamMetrics:
    """Counted on the event loop. breakers: the states of the circuit breakers, by upstream."""

    def __init__(self) -> None:
        self.breakers: Callable[[], Mapping[str, BreakerState]] = dict
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.retries: Counter[tuple[str]] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self._latency: dict[str, Histogram] = {}

    def answered(self, upstream: str, status: int, seconds: float) -> None:
        self.requests[upstream, _STATUSES.get(status, "other")] += 1
        if upstream not in self._latency:
            self._latency[upstream] = Histogram(SECONDS)
        self._latency[upstream].observe(seconds)

    def failed(self, upstream: str, kind: str) -> None:
        self.failures[upstream, kind] += 1

    def retried(self, upstream: str) -> None:
        self.retries[upstream,] += 1

    def fell_back(self, target: Target, reason: Reason) -> None:
        """target: who answered in the place of the one that was asked first, or had to be."""
        self.fallbacks[target, reason] += 1

    def latency(self) -> Iterator[tuple[tuple[str], HistogramStats]]:
        for upstream, histogram in self._latency.items():
            yield (upstream,), histogram.stats()

    def states(self) -> Iterator[tuple[tuple[str, str], int]]:
        """1 for the state that a breaker is in, 0 for the others."""
        for upstream, current in self.breakers().items():
            for state in BreakerState:
                yield (upstream, state), int(state is current)
