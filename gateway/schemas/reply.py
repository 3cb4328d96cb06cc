"""What every reply of a chat or a completion carries, whole or in chunks."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from secrets import token_hex
from time import time
from typing import Any, Self

from handlers.base import Generation
from handlers.spec import ModelSpec

Usage = dict[str, Any]

# OpenAI's own value for a token that is too unlikely to say; infinities are not JSON.
LEAST_LOGPROB = -9999.0


def _version() -> str:
    try:
        return version("openai-inference-gateway")
    except PackageNotFoundError:
        return "checkout"  # run without having been installed


VERSION = _version()


@cache
def fingerprint(spec: ModelSpec) -> str:
    """The same for as long as neither the model nor this program changes, so that a `seed` means the same answer."""
    return f"fp_{sha256(f'{VERSION} {spec}'.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a reply and every chunk of it carry alike. created: unix seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, model: str, spec: ModelSpec) -> Self:
        """model: the name that was asked for."""
        return cls(f"{prefix}-{token_hex(12)}", int(time()), model, fingerprint(spec))

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage(generation: Generation, completion_tokens: int) -> Usage:
    """completion_tokens: of all answers together."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": generation.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": generation.reasoning_tokens},
    }


def finite(logprob: float | None) -> float:
    """A number that JSON has, and no more than certain. NaN compares as false with everything."""
    if logprob is None or not logprob >= LEAST_LOGPROB:
        return LEAST_LOGPROB
    return min(logprob, 0.0)
