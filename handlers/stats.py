"""What a model has done since it was loaded, for whoever watches it. Counts only grow; what is None does not apply."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from batching.stats import BatchStats, ProcessStats


@dataclass(frozen=True, slots=True)
class CacheStats:
    """hits, misses: look-ups so far. entries, bytes: what is kept now."""

    hits: int
    misses: int
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelStats:
    """prompt_tokens: of admitted prompts, or of embedded texts. cached_tokens: those of them in the prefix cache.

    audio_seconds: transcribed or spoken. cache: of results that need not be computed again.
    processes: those of its own, by what each does.
    """

    batches: BatchStats
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    audio_seconds: float | None = None
    cache: CacheStats | None = None
    processes: Mapping[str, ProcessStats] = field(default_factory=dict)

    @property
    def broken(self) -> str | None:
        """Why it answers nothing any more."""
        return next((process.broken for process in self.processes.values() if process.broken), None)

    @property
    def restarting(self) -> bool:
        """Whether requests wait for a process that is started again."""
        return not self.broken and not all(process.running for process in self.processes.values())
