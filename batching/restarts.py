"""When a process that died is started again. Pure: nothing here waits or looks at a clock."""


class Restarts:
    """After a crash, `first` seconds of pause, doubled with each further one up to `longest`.

    An answered call, or a `window` without a crash, makes the next one the first again. `most` crashes within one
    window, without an answer between them, are a crash loop, and so are `most` starts that fail one after the other,
    however long each takes. All times in seconds.
    """

    def __init__(self, *, first: float = 0.1, longest: float = 10.0, most: int = 5, window: float = 60.0) -> None:
        self.first = first
        self.longest = longest
        self.most = most
        self.window = window
        self._crashes: list[float] = []
        self._in_a_row = 0
        self._failed_starts = 0

    def answered(self) -> None:
        """The process does its work: if it dies of the next call, that is the call's fault."""
        self._crashes.clear()

    def started(self) -> None:
        self._failed_starts = 0

    def failed_to_start(self, now: float) -> float | None:
        """As `crashed`."""
        self._failed_starts += 1
        pause = self.crashed(now)
        return None if self._failed_starts >= self.most else pause

    def crashed(self, now: float) -> float | None:
        """The seconds to wait before the next start, or None to give up."""
        self._crashes = [time for time in self._crashes if now - time <= self.window]
        self._in_a_row = self._in_a_row + 1 if self._crashes else 1
        self._crashes.append(now)
        if len(self._crashes) >= self.most:
            return None
        return float(min(self.longest, self.first * 2 ** (self._in_a_row - 1)))
