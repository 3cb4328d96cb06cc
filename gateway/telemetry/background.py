"""A log handler that never waits for its sink."""

import logging
import threading
from collections import deque
from logging import LogRecord
from typing import TextIO

CAPACITY = 10_000  # records: a few megabytes
FLUSH_SECONDS = 1.0

# Lines that come this close together are written as one. A thread that is woken for every line costs more than the line
# does: it takes the interpreter from the event loop while a request is being answered.
GATHER_SECONDS = 0.05

_LEAST = logging.Formatter()


class BackgroundHandler(logging.Handler):
    """Formats records where they are made, and hands the lines to a thread that writes them to `stream`.

    While that is stuck, records over `capacity` are dropped and counted; the next one that finds room is preceded by a
    line that says how many are missing. total_dropped: all of them so far. A line is kept, never its record: arguments
    may change, and a traceback keeps tensors alive.
    """

    def __init__(self, stream: TextIO, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._stream = stream
        self._capacity = capacity
        self._lines: deque[str] = deque()
        self._dropped = 0
        self.total_dropped = 0
        self._arrived = threading.Event()
        self._hurry = threading.Event()  # set while somebody waits for what has been logged so far
        self._written = threading.Condition()
        self._handed_over = 0
        self._finished = 0
        self._stopping = False
        self._writer: threading.Thread | None = threading.Thread(target=self._write, name="log writer", daemon=True)
        self._writer.start()

    def emit(self, record: LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler does: an argument that cannot be shown ends no request
            self.handleError(record)
            return
        if len(self._lines) >= self._capacity:
            self._dropped += 1
            self.total_dropped += 1
            return
        if self._dropped:
            self._hand_over(self.format(_missing(self._dropped)))
            self._dropped = 0
        self._hand_over(line)

    def format(self, record: LogRecord) -> str:
        """A traceback's text goes to the formatter as text, and to no other handler."""
        if record.exc_info and not record.exc_text:
            record = logging.makeLogRecord(vars(record) | {"exc_text": _LEAST.formatException(record.exc_info)})
        return super().format(record)

    def flush(self) -> None:
        """Wait until all is written, or for a second if the sink is stuck."""
        self._drain()

    def close(self) -> None:
        # A writer stuck in its sink cannot be stopped; its thread is a daemon and ends with the process.
        if self._writer is not None and self._drain():
            self._stopping = True
            self._arrived.set()
            self._hurry.set()
            self._writer.join()
            self._writer = None
        super().close()

    def _hand_over(self, line: str) -> None:
        self._handed_over += 1
        self._lines.append(line)
        if not self._arrived.is_set():
            self._arrived.set()

    def _drain(self) -> bool:
        self._hurry.set()
        try:
            with self._written:
                return self._written.wait_for(lambda: self._finished == self._handed_over, timeout=FLUSH_SECONDS)
        finally:
            self._hurry.clear()

    def _write(self) -> None:
        while not self._stopping:
            self._arrived.wait()
            self._hurry.wait(GATHER_SECONDS)
            self._arrived.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            self._write_lines(lines)
            with self._written:
                self._finished += len(lines)
                self._written.notify_all()

    def _write_lines(self, lines: list[str]) -> None:
        try:
            self._stream.write("".join(line + "\n" for line in lines))
            self._stream.flush()
        except Exception:  # noqa: BLE001 - a sink that has gone takes its lines with it, and nothing else
            if logging.raiseExceptions:
                self.handleError(_missing(len(lines)))


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
