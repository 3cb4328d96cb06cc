"""Bounds of one queue and of the batches taken from it."""

import math
from dataclasses import dataclass

_LEAST_SHARE = 32
_TURN_SHARE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """The unit of cost is the batcher's own: tokens, audio seconds, characters.

    max_queue_size: jobs that may wait; one more is refused with QueueFull.
    max_queue_cost: cost that may wait.
    max_batch_size: jobs that run together.
    max_batch_cost: cost that runs together; a single job above it runs alone.
    max_wait: seconds a batch may wait for company; 0 means a lone request starts at once.
    max_batch_seconds: how long a batch should take at most, by the pace of those before it: whoever comes meanwhile
        waits for its end.
    max_turn_cost: how much of a large request goes before whoever comes meanwhile, if that is less than a batch.
    """

    max_queue_size: int = 256
    max_queue_cost: int = 1_000_000
    max_batch_size: int = 32
    max_batch_cost: int = 16_384
    max_wait: float = 0.0
    max_batch_seconds: float = math.inf
    max_turn_cost: float = math.inf

    @property
    def is_bounded_in_time(self) -> bool:
        return not math.isinf(self.max_batch_seconds)

    @property
    def least_batch_cost(self) -> int:
        """What may run together at any pace."""
        return max(1, self.max_batch_cost // _LEAST_SHARE)

    @property
    def turn_cost(self) -> int:
        """How much of a large request goes before whoever comes meanwhile."""
        share = self.max_batch_cost // _TURN_SHARE if self.is_bounded_in_time else self.max_batch_cost
        return max(1, int(min(share, self.max_turn_cost)))
