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
        self.refused = 0
        self.closed = False
        self.pace = Pace()
        self._limits = limits
        self._places: set[Place] = set()

    @property
    def files(self) -> int:
        return len(self._places)

    @property
    def seconds(self) -> float:
        """Measured, and still to be transcribed."""
        return sum(place.seconds for place in self._places)

    def admit(self) -> "Place":
        """Raises QueueFull or ShuttingDown."""
        if self.closed:
            raise ShuttingDown(f"{self.name} is shutting down")
        if self.files >= self._limits.max_queue_size:
            raise self._full(self._limits.max_queue_size, "requests")
        if self.seconds > self._limits.max_queue_cost:
            raise self._full(self._limits.max_queue_cost, "seconds of audio")
        place = Place(self)
        self._places.add(place)
        return place

    def check_length(self, seconds: float) -> None:
        """Raises QueueFull if the files that are open leave no room for one more of that length.

        Where no other is, a file of any length may be: above the bound, it would be told to retry for ever.
        """
        if self.files > 1 and self.seconds + seconds > self._limits.max_queue_cost:
            raise self._full(self._limits.max_queue_cost, "seconds of audio")

    def remove(self, place: "Place") -> None:
        self._places.discard(place)

    def _full(self, limit: int, unit: str) -> QueueFull:
        self.refused += 1
        return QueueFull(limit, unit, retry_after=self.pace.seconds_for(int(self.seconds)))


class Place:
    """One file's. seconds: of it that are not transcribed yet; 0 before it is measured."""

    def __init__(self, admission: Admission) -> None:
        self.seconds = 0.0
        self._admission = admission

    def measured(self, seconds: float) -> None:
        """The file is that long. Raises QueueFull."""
        self._admission.check_length(seconds)
        self.seconds = seconds

    def transcribed(self, seconds: float) -> None:
        self.seconds = max(0.0, self.seconds - seconds)

    def release(self) -> None:
        """Give it back; may be called again."""
        self._admission.remove(self)
