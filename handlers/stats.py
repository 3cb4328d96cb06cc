"""What a model has done since it was loaded, for whoever watches it. Counts only grow; what is None does not apply."""

from dataclasses import dataclass

from batching.stats import BatchStats


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
    broken: why it answers nothing any more.
    """

    batches: BatchStats
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    audio_seconds: float | None = None
    cache: CacheStats | None = None
    broken: str | None = None
