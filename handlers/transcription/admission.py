"""How much audio may be open at once. Pure and synchronous, on the event loop."""

from batching.errors import QueueFull, ShuttingDown
from batching.limits import Limits
from batching.pace import Pace


class Admission:
    """Counts files and their seconds that are not transcribed yet; both are bounded.

    The batcher sees a few windows of a file only, so it cannot tell how much more is to come.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.files = 0
        self.seconds = 0.0
        self.refused = 0
        self.closed = False
        self.pace = Pace()
        self._limits = limits

    def check_room(self, seconds: float = 0.0) -> None:
        """Raises QueueFull or ShuttingDown if one more file of that length may not wait.

        Where nobody is, a file of any length may: above the bound, it would be told to retry for ever.
        """
        if self.closed:
            raise ShuttingDown(f"{self.name} is shutting down")
        if not self.files:
            return
        if self.files >= self._limits.max_queue_size:
            raise self._full(self._limits.max_queue_size, "requests")
        if self.seconds + seconds > self._limits.max_queue_cost:
            raise self._full(self._limits.max_queue_cost, "seconds of audio")

    def admit(self) -> "Place":
        """Raises QueueFull or ShuttingDown."""
        self.check_room()
        return Place(self)

    def _full(self, limit: int, unit: str) -> QueueFull:
        self.refused += 1
        return QueueFull(limit, unit, retry_after=self.pace.seconds_for(int(self.seconds)))


class Place:
    """One file's. It is given back once, however often that is asked for."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._seconds = 0.0
        self._held = True
        admission.files += 1

    def measured(self, seconds: float) -> None:
        """The file is that long. Raises QueueFull or ShuttingDown."""
        self._admission.files -= 1
        try:
            self._admission.check_room(seconds)
        finally:
            self._admission.files += 1
        self._seconds = seconds
        self._admission.seconds += seconds

    def transcribed(self, seconds: float) -> None:
        done = min(seconds, self._seconds)
        self._seconds -= done
        self._admission.seconds -= done

    def release(self) -> None:
        if self._held:
            self._held = False
            self.transcribed(self._seconds)
            self._admission.files -= 1
