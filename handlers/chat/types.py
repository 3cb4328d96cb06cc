"""What a chat is, apart from any wire format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; `seed` None draws a fresh one per request."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """messages: role and text each. max_tokens None: as many as the context has room for."""

    messages: Sequence[Mapping[str, str]]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. `completion_tokens` is the running total; `finish_reason` is set on the last one."""

    text: str
    completion_tokens: int
    finish_reason: str | None = None
