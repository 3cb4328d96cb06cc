"""Whether an upstream that keeps failing is asked. Pure: time comes in as a number, from a clock that never goes back.

closed ──5 failures in a row──▶ open ──after a pause──▶ half-open: one request tries ──its reply begins──▶ closed
                                 ▲                                        │
                                 └───────────── it fails: twice the pause ◀┘
"""

from enum import StrEnum

FAILURES = 5  # in a row
FIRST_PAUSE = 1.0  # seconds
LONGEST_PAUSE = 30.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Each True of `admit` is followed by one call of `succeeded`, `failed` or `left`, perhaps after one of `began`."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause = 0.0
        self._intact = True
        self._opened_at = 0.0
        self._probing = False

    def state(self, now: float) -> BreakerState:
        if self._intact:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self.retry_in(now) > 0 else BreakerState.HALF_OPEN

    def retry_in(self, now: float) -> float:
        """Seconds until a request may try; 0 if one may now, or is trying."""
        return 0.0 if self._intact else max(0.0, self._opened_at + self._pause - now)

    def would_admit(self, now: float) -> bool:
        match self.state(now):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return not self._probing

    def admit(self, now: float) -> bool:
        """Whether a request may go; in the half-open state, only one at a time."""
        if not self.would_admit(now):
            return False
        self._probing = self.state(now) is BreakerState.HALF_OPEN
        return True

    def began(self) -> None:
        """A reply has begun: whoever was being tried is there again, but a failure in its middle opens it at once."""
        if not self._intact:
            self._intact = True
            self._failures = FAILURES - 1
        self._probing = False

    def succeeded(self) -> None:
        """A reply has come to its end. Also one that was asked for before it broke: whoever answers is there again."""
        self._failures = 0
        self._pause = 0.0
        self._intact = True
        self._probing = False

    def failed(self, now: float) -> None:
        self._failures += 1
        probed, self._probing = self._probing, False
        if self._intact and self._failures < FAILURES:
            return
        if self._intact or probed:
            self._intact = False
            self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
            self._opened_at = now

    def left(self) -> None:
        """The request ended without saying anything about the upstream, as when its client leaves."""
        self._probing = False
