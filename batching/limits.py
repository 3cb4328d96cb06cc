"""Bounds of one queue and of the batches taken from it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The unit of cost is the batcher's own: tokens, audio seconds, characters.

    max_queue_size: jobs that may wait; one more is refused with QueueFull.
    max_queue_cost: cost that may wait.
    max_batch_size: jobs that run together.
    max_batch_cost: cost that runs together; a single job above it runs alone.
    max_wait: seconds a batch may wait for company; 0 means a lone request starts at once.
    """

    max_queue_size: int = 256
    max_queue_cost: int = 1_000_000
    max_batch_size: int = 32
    max_batch_cost: int = 16_384
    max_wait: float = 0.0
