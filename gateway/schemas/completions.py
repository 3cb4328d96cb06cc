"""POST /v1/chat/completions: what is sent, whole or in chunks."""

import time
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from secrets import token_hex
from typing import Any

import orjson

from gateway.sse import frame
from handlers.spec import ModelSpec

Usage = dict[str, Any]


def _version() -> str:
    try:
        return version("openai-inference-gateway")
    except PackageNotFoundError:
        return "checkout"  # run without having been installed


VERSION = _version()


def fingerprint(spec: ModelSpec) -> str:
    """The same for as long as neither the model nor this program changes, so that a `seed` means the same answer."""
    return f"fp_{sha256(f'{VERSION} {spec}'.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a completion and every chunk of it carry alike. created: unix seconds."""

    model: str
    system_fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def completion(stamp: Stamp, text: str, finish_reason: str | None, usage: Usage, service_tier: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {
        "id": stamp.id,
        "object": "chat.completion",
        "created": stamp.created,
        "model": stamp.model,
        "system_fingerprint": stamp.system_fingerprint,
        "service_tier": service_tier,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": usage,
    }


class Chunks:
    """Writes the events of one stream. All but the delta is encoded once: a token costs one small `orjson.dumps`."""

    def __init__(self, stamp: Stamp, *, include_usage: bool) -> None:
        head = {
            "id": stamp.id,
            "object": "chat.completion.chunk",
            "created": stamp.created,
            "model": stamp.model,
            "system_fingerprint": stamp.system_fingerprint,
        }
        self._head = orjson.dumps(head)[:-1] + b',"choices":['
        self._tail = b'}],"usage":null}' if include_usage else b"}]}"

    def role(self) -> bytes:
        return self._chunk(b'{"role":"assistant","content":"","refusal":null}')

    def text(self, text: str) -> bytes:
        return self._chunk(b'{"content":%b}' % orjson.dumps(text))

    def finish(self, reason: str | None) -> bytes:
        return self._chunk(b"{}", orjson.dumps(reason))

    def usage(self, usage: Usage) -> bytes:
        return frame(b'%b],"usage":%b}' % (self._head, orjson.dumps(usage)))

    def _chunk(self, delta: bytes, finish_reason: bytes = b"null") -> bytes:
        choice = b'{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b' % (delta, finish_reason)
        return frame(b"%b%b%b" % (self._head, choice, self._tail))
