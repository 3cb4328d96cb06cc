"""Whether, when and how often a request is sent again. Pure: time and chance come in as numbers."""

import re
from email.utils import parsedate_to_datetime

MAX_ATTEMPTS = 2  # of one request, at one upstream or several
MAX_RETRY_AFTER = 5.0  # seconds that an upstream may ask to be waited for
FIRST_DELAY = 0.04  # seconds; doubles with every attempt
REQUESTS_PER_RETRY = 10
MAX_SAVED = 10  # retries

TRANSIENT = frozenset({429, 502, 503, 504})
"""Statuses of a server that has not done the work."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What only computes: asked twice it costs twice, and changes nothing.
_COMPUTES = re.compile(
    r"/(?:v\d+/)?(?:chat/completions|completions|embeddings|rerank|moderations"
    r"|audio/(?:transcriptions|translations|speech)|images/generations)/?(?:\?.*)?"
)
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,6})?")


def is_repeatable(method: str, path: str) -> bool:
    """Whether a server may get this twice without harm. What creates files, batches or responses may not."""
    return method in _SAFE_METHODS or (method == "POST" and _COMPUTES.fullmatch(path) is not None)


def retry_after(value: str, now: float) -> float | None:
    """Seconds that a `Retry-After` asks for: a number, or a date. None for what is neither, or lies in the past.

    now: unix seconds.
    """
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        seconds = float(parsedate_to_datetime(value).timestamp()) - now
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


def delay_before(attempt: int, asked: float | None, chance: float) -> float | None:
    """Seconds to wait before that attempt, 2 being the first retry; None if the upstream wants more than it may.

    asked: its `Retry-After`. chance: from 0 to 1; the wait is spread over its whole width, so that the clients of a
    server that comes back do not come back as one (Brooker, "Exponential Backoff and Jitter", 2015).
    """
    backoff = FIRST_DELAY * 2.0 ** (attempt - 2)
    if asked is None:
        return chance * backoff
    return asked + chance * backoff if asked <= MAX_RETRY_AFTER else None


class RetryBudget:
    """Every request earns a tenth of a retry, so that retries never add more than that to the load.

    Of n requests, at most n / 10 + 1 are sent again: the one is there from the start.
    """

    def __init__(self) -> None:
        self._requests = REQUESTS_PER_RETRY

    @property
    def empty(self) -> bool:
        return self._requests < REQUESTS_PER_RETRY

    def earn(self) -> None:
        """Call once a request."""
        self._requests = min(MAX_SAVED * REQUESTS_PER_RETRY, self._requests + 1)

    def charge(self) -> None:
        """One request has been sent again that could not be left unsent."""
        self._requests -= REQUESTS_PER_RETRY

    def spend(self) -> bool:
        """Whether a request may be sent again; if so, it is paid for."""
        if self.empty:
            return False
        self.charge()
        return True
