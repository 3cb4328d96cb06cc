"""What can end a job other than its result. Nothing here knows HTTP; the edge maps each word to a status.

BatchingError
├── QueueFull          refused at the door: come back in `retry_after` seconds
├── ShuttingDown       refused at the door: the process is draining
├── DeadlineExceeded   the caller's time ran out, queued or running
├── OutOfMemory        this job alone does not fit into the device's memory
├── EngineFailed       the model raised; the cause is `__cause__` and belongs in the log only
│   └── ProcessDied    the model's process died with the job, which may be tried again
└── ProcessBroken      the model's process died too often and is not started any more
"""


class BatchingError(Exception):
    """Base of every way a job can end without a result."""


class QueueFull(BatchingError):
    """The waiting room is full. `retry_after` is in seconds."""

    def __init__(self, limit: int, unit: str = "requests", retry_after: float = 1.0) -> None:
        super().__init__(f"the queue is full ({limit} {unit})")
        self.limit = limit
        self.unit = unit
        self.retry_after = retry_after


class ShuttingDown(BatchingError):
    """The batcher takes no new work."""


class DeadlineExceeded(BatchingError):
    """The job's deadline passed before its result was there."""


class OutOfMemory(BatchingError):
    """The job ran out of device memory even alone in its batch."""


class EngineFailed(BatchingError):
    """The model raised while running this job alone."""


class ProcessDied(EngineFailed):
    """The process that ran this job alone died, or was killed with it. Another one takes the next job."""


class ProcessBroken(BatchingError):
    """The process died so often in a row that it is not started again."""
