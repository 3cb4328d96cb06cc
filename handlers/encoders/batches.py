"""Batches of encoders: one on all cores, or several at once on a part of them each."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

from batching.batcher import Batcher, Run
from batching.worker import Worker
from handlers.devices import is_out_of_memory, release_memory
from handlers.spec import ModelSpec

Work = TypeVar("Work")
Result = TypeVar("Result")

# Each has a Python thread of its own, and these take turns.
_MOST_AT_ONCE = 4


def encoder_batcher(
    spec: ModelSpec, run: Run[Work, Result], device: torch.device, *, worker: Worker
) -> Batcher[Work, Result]:
    """A batcher around an encoder's `run`.

    On a processor, threads that share a batch meet after each of its operations, and all of them wait for one that had
    to give its core to somebody else, such as the server's own thread: with half a core taken, a batch of 400 tokens
    took 156 ms on two cores, and two halves of it, each on one core, 120 ms. So batches with company have few threads.
    """
    cores = torch.get_num_threads()
    at_once = min(cores, _MOST_AT_ONCE) if device.type == "cpu" else 1
    return Batcher(
        spec.id,
        run,
        spec.limits,
        worker=worker,
        beside=[Worker(f"{spec.id} {number}") for number in range(2, at_once + 1)],
        run_beside=_with_threads(cores // at_once, run),
        is_out_of_memory=is_out_of_memory,
        release_memory=release_memory,
    )


def _with_threads(threads: int, run: Run[Work, Result]) -> Run[Work, Result]:
    # Not torch.set_num_threads: threads that begin later would have so few as well.
    openmp = ThreadpoolController().select(user_api="openmp")

    def run_with_threads(works: Sequence[Work]) -> Sequence[Result | Exception]:
        with openmp.limit(limits=threads):
            return run(works)

    return run_with_threads
