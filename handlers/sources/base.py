"""What every kind of source offers."""

from pathlib import Path
from typing import ClassVar, Protocol


class Progress(Protocol):
    """Told how far a fetch is, in the thread that fetches."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """step: waiting, downloading, verifying or unpacking. done, total: bytes of that step; None is not known."""


def unseen(step: str, done: int, total: int | None) -> None:
    """The Progress of a fetch that nobody watches."""


class Source(Protocol):
    """`str(source)` names it in messages. is_remote: whether `fetch` can get what is missing from somewhere else."""

    is_remote: ClassVar[bool]

    def cached(self, cache_dir: Path) -> Path | None:
        """The local folder if the files are here already; looks at the disk only."""

    def fetch(self, cache_dir: Path, progress: Progress, offline: bool) -> Path:
        """The local folder, after downloading what is missing. Raises SourceError."""
