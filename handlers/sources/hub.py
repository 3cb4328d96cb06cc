"""`hub:org/name@revision`: a repository of the model hub, kept in huggingface_hub's own cache layout."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from handlers.errors import SourceError
from handlers.sources.base import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights for frameworks that no engine here runs; many repositories carry them beside the usable ones.
UNUSED_FORMATS = ["*.msgpack", "*.h5", "*.ot", "*.tflite"]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A commit, once here, is never looked up again. A branch or tag is looked up at every fetch; where the hub is out
    of reach the copy in the cache serves."""

    is_remote: ClassVar[bool] = True

    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        repository, _, revision = text.partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise SourceError(f"hub:{text}: not a repository; write hub:org/name@revision")
        if not revision:
            raise SourceError(
                f"hub:{text}: no revision; write hub:{repository}@<commit>, or @main for the newest files"
            )
        return cls(repository, revision)

    def __str__(self) -> str:
        return f"hub:{self.repository}@{self.revision}"

    def cached(self, cache_dir: Path) -> Path | None:
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return self._snapshot(cache_dir, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            return None

    def fetch(self, cache_dir: Path, progress: Progress, offline: bool) -> Path:
        is_fixed = offline or COMMIT.fullmatch(self.revision)
        if is_fixed and (folder := self.cached(cache_dir)):
            return folder
        if offline:
            raise SourceError(f"{self}: not in the cache, and offline mode is on; run `gateway pull` online first")
        # With huggingface_hub, too slow to import for those who use no hub.
        import httpx2

        try:
            return self._snapshot(cache_dir, tqdm_class=_reporter(progress))
        except (OSError, ValueError, httpx2.HTTPError) as exc:
            raise SourceError(f"{self}: {_why(exc)}") from exc

    def _snapshot(self, cache_dir: Path, **options: Any) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.repository,
            revision=self.revision,
            cache_dir=cache_dir / "hub",
            ignore_patterns=UNUSED_FORMATS,
            **options,
        )
        return Path(folder)


def _why(exc: Exception) -> str:
    """What went wrong and what to do, in one line."""
    from huggingface_hub import errors

    # "Not in the cache" is raised from the reason why the hub was not asked, or did not answer.
    cause = (exc.__cause__ if isinstance(exc, errors.LocalEntryNotFoundError) else None) or exc
    match cause:
        case errors.GatedRepoError():
            return "the repository is gated; accept its terms on the hub and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return "no such repository, or a private one; check the name, or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return "the repository has no such revision; name a commit, tag or branch that it has"
        case errors.HFValidationError():
            return "the hub allows no such repository name; write hub:org/name@revision"
        case errors.OfflineModeIsEnabled():
            return "not in the cache, and HF_HUB_OFFLINE is set; unset it and run `gateway pull`"
        case _:
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            return f"the hub gave no answer ({reason}); check the network, the proxy and HF_ENDPOINT, or use dir:"


def _reporter(progress: Progress) -> "type[tqdm]":
    """A progress bar class that reports bytes to `progress` and draws nothing."""
    # Not huggingface_hub's own subclass, which counts nothing where bars are switched off for the process.
    from tqdm import tqdm

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": False, "file": io.StringIO()}))

        def update(self, n: float | None = 1) -> bool | None:
            refreshed: bool | None = super().update(n)
            if self.unit == "B":  # another bar counts files
                progress("downloading", int(self.n), int(self.total) if self.total else None)
            return refreshed

    return Reporter
