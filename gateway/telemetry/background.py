"""A log handler that never waits for its sink."""

import copy
import logging
import queue
from logging import LogRecord
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

CAPACITY = 10_000  # records: a few megabytes
FLUSH_SECONDS = 1.0


class BackgroundHandler(QueueHandler):
    """Hands records to a thread that writes them to `stream`.

    While that is stuck, records over `capacity` are dropped and counted; the next one that finds room is preceded by a
    line that says how many are missing. total_dropped: all of them so far.
    """

    def __init__(self, stream: TextIO, capacity: int = CAPACITY) -> None:
        self._records: queue.Queue[LogRecord] = queue.Queue(capacity)
        super().__init__(self._records)
        self._sink = logging.StreamHandler(stream)
        self._writer: QueueListener | None = QueueListener(self._records, self._sink)
        self._writer.start()
        self._dropped = 0
        self.total_dropped = 0

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        self._sink.setFormatter(fmt)

    def prepare(self, record: LogRecord) -> LogRecord:
        """A copy that holds text only: arguments may change, and a traceback keeps tensors alive."""
        prepared = copy.copy(record)
        prepared.msg, prepared.args = record.getMessage(), None
        if record.exc_info:
            prepared.exc_text = logging.Formatter().formatException(record.exc_info)
            prepared.exc_info = None
        return prepared

    def enqueue(self, record: LogRecord) -> None:
        try:
            if self._dropped:
                self._records.put_nowait(_missing(self._dropped))
                self._dropped = 0
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1
            self.total_dropped += 1

    def flush(self) -> None:
        """Wait until all is written, or for a second if the sink is stuck."""
        self._drain()

    def close(self) -> None:
        # A writer stuck in its sink cannot be stopped; its thread is a daemon and ends with the process.
        if self._writer is not None and self._drain():
            self._writer.stop()
            self._writer = None
        super().close()

    def _drain(self) -> bool:
        with self._records.all_tasks_done:
            return self._records.all_tasks_done.wait_for(
                lambda: self._records.unfinished_tasks == 0, timeout=FLUSH_SECONDS
            )


def _missing(count: int) -> LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": f"{count} log records are missing here: what reads the log was too slow",
            "request_id": "-",
        }
    )
