"""What a log line looks like."""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from logging import LogRecord

import orjson

_BEARER = re.compile(r"(?i)\b(bearer )[^\s\"',]+")
_HIDDEN = "***"
# What every record has; the rest was given as `extra`.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "request_id", "taskName", "color_message"}


class Redactor:
    """Hides the given secrets, and whatever follows the word "Bearer"."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        # Longest first: one secret may begin with another.
        words = sorted(filter(None, secrets), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        text = _BEARER.sub(rf"\1{_HIDDEN}", text)
        return self._secrets.sub(_HIDDEN, text) if self._secrets else text


class TextFormatter(logging.Formatter):
    """`time level logger [request_id] message`, tracebacks below. A message takes one line, whatever is in it."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        request_id = getattr(record, "request_id", "-")
        message = _printable(self._redact(record.getMessage()))
        line = f"{time} {record.levelname:<7} {record.name} [{request_id}] {message}"
        return f"{line}\n{self._redact(record.exc_text)}" if record.exc_text else line


class JsonFormatter(logging.Formatter):
    """One object a line: ts (UTC), level, logger, message, request_id, exception, and what was logged as `extra`."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: LogRecord) -> str:
        fields = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._text(record.getMessage()),
            "request_id": getattr(record, "request_id", "-"),
        }
        if record.exc_text:
            fields["exception"] = self._text(record.exc_text)
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD | fields.keys()}
        return orjson.dumps({**fields, **{name: self._plain(value) for name, value in extra.items()}}).decode()

    def _plain(self, value: object) -> object:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return int(value)
        return self._text(str(value))

    def _text(self, text: str) -> str:
        """orjson refuses lone surrogates, which undecodable file names hold."""
        return self._redact(text).encode("utf-8", "backslashreplace").decode()


def _printable(text: str) -> str:
    # What clients send can end up in a message; a line break in it would be a log line of their own writing.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
