"""How fast a queue moves: how much makes a batch of a certain time, and when who was refused should come back."""

_SMOOTHING = 0.2


class Pace:
    """Exponentially smoothed cost per second of finished batches."""

    def __init__(self) -> None:
        self._cost_per_second: float | None = None

    def record(self, cost: int, seconds: float) -> None:
        if seconds <= 0:
            return
        rate = cost / seconds
        known = self._cost_per_second
        self._cost_per_second = rate if known is None else known + _SMOOTHING * (rate - known)

    def cost_in(self, seconds: float) -> float:
        """What is worked off in that time; 0 while nothing is known."""
        return (self._cost_per_second or 0.0) * seconds

    def seconds_for(self, cost: int, *, at_least: float = 1.0, at_most: float = 60.0) -> float:
        """Seconds until `cost` has been worked off. OpenAI's clients give up on a Retry-After above 120 s."""
        if not self._cost_per_second:
            return at_least
        return min(at_most, max(at_least, cost / self._cost_per_second))
