"""Log lines, as text or JSON: written aside from the event loop, with the request's id and without secrets."""

import logging
import logging.config
import sys
from collections.abc import Sequence
from logging import LogRecord
from typing import Literal, TextIO

from batching.context import current_requests
from gateway.telemetry.background import BackgroundHandler
from gateway.telemetry.context import request_id_var
from gateway.telemetry.formats import JsonFormatter, Redactor, TextFormatter

OURS = ("gateway", "handlers", "batching", "proxy", "uvicorn")


def configure(
    level: str, format: Literal["text", "json"], *, secrets: Sequence[str] = (), stream: TextIO | None = None
) -> None:
    """Log from `level` up to `stream` (None is stderr). `secrets` are hidden wherever they turn up.

    Other libraries are heard from WARNING up only: below it some of them write headers and contents.
    """
    own_level = logging.getLevelNamesMapping()[level.upper()]
    formatter = {"text": TextFormatter, "json": JsonFormatter}[format]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": formatter, "redact": Redactor(secrets)}},
            "filters": {"request": {"()": RequestFilter}},
            "handlers": {
                "background": {
                    "()": BackgroundHandler,
                    "stream": stream or sys.stderr,
                    "formatter": "line",
                    "filters": ["request"],
                }
            },
            "loggers": {name: {"level": own_level} for name in OURS},
            "root": {"level": max(own_level, logging.WARNING), "handlers": ["background"]},
        }
    )
    logging.captureWarnings(True)
    _record_only_what_is_written()


def _record_only_what_is_written() -> None:
    """No line says which thread, process or line of code wrote it (docs.python.org, "Logging HOWTO", Optimization)."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def dropped_records() -> int:
    """How many log records were lost so far because what reads the log was too slow."""
    handlers = logging.getLogger().handlers
    return sum(handler.total_dropped for handler in handlers if isinstance(handler, BackgroundHandler))


class RequestFilter(logging.Filter):
    """Puts `request_id` on a record; in the thread of a batch the ids of all its requests, separated by commas.

    It must run where the record is made: the thread that writes serves no request.
    """

    def filter(self, record: LogRecord) -> bool:
        record.request_id = ",".join(current_requests.get()) or request_id_var.get()
        return True
