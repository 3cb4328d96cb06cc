"""POST /v1/completions: what is sent, whole or in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.schemas.reply import Stamp, finite, usage
from gateway.sse import frame
from handlers.base import Generation
from handlers.chat.types import Delta, TokenLogprob

_KIND = "text_completion"


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0


class CompletionReply:
    """Gathers the deltas of all answers. logprobs: None for none, else how many beside each chosen token."""

    def __init__(self, stamp: Stamp, *, choices: int, logprobs: int | None) -> None:
        self._stamp = stamp
        self._logprobs = logprobs
        self._answers = [_Answer() for _ in range(choices)]

    def add(self, delta: Delta) -> None:
        answer = self._answers[delta.index]
        answer.text.append(delta.text)
        answer.logprobs.extend(delta.logprobs)
        answer.finish_reason = delta.finish_reason
        answer.tokens = delta.completion_tokens

    def body(self, generation: Generation) -> dict[str, Any]:
        return {
            **self._stamp.head(_KIND),
            "choices": [self._choice(i, answer) for i, answer in enumerate(self._answers)],
            "usage": usage(generation, sum(answer.tokens for answer in self._answers)),
        }

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(answer.text),
            "logprobs": None if self._logprobs is None else legacy_logprobs(answer.logprobs, self._logprobs),
            "finish_reason": answer.finish_reason,
        }


class CompletionChunks:
    """Writes the events of one stream. All but the text is encoded once."""

    def __init__(self, stamp: Stamp, *, logprobs: int | None, include_usage: bool) -> None:
        self._head = orjson.dumps(stamp.head(_KIND))[:-1] + b',"choices":['
        self._tail = b'}],"usage":null}' if include_usage else b"}]}"
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._tokens: dict[int, int] = {}
        self._offsets: dict[int, int] = {}

    def events(self, delta: Delta) -> bytes:
        """The event of one delta, or none: a token need not be a character."""
        self._tokens[delta.index] = delta.completion_tokens
        logprobs = self._encoded_logprobs(delta)
        if not (delta.text or delta.finish_reason) and logprobs == b"null":
            return b""
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b' % (
            delta.index,
            orjson.dumps(delta.text),
            logprobs,
            orjson.dumps(delta.finish_reason),
        )
        return frame(b"%b%b%b" % (self._head, choice, self._tail))

    def last(self, generation: Generation) -> bytes:
        """The event with the usage, if it was asked for."""
        if not self._include_usage:
            return b""
        counts = usage(generation, sum(self._tokens.values()))
        return frame(b'%b],"usage":%b}' % (self._head, orjson.dumps(counts)))

    def _encoded_logprobs(self, delta: Delta) -> bytes:
        if self._logprobs is None or not delta.logprobs:
            return b"null"
        offset = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = offset + sum(len(token.text) for token in delta.logprobs)
        return orjson.dumps(legacy_logprobs(delta.logprobs, self._logprobs, offset))


def legacy_logprobs(tokens: Sequence[TokenLogprob], top: int, offset: int = 0) -> dict[str, Any]:
    """offset: characters of the answer before these tokens. top 0: the chosen tokens only."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": [_likeliest(token) for token in tokens] if top else None,
        "text_offset": offsets,
    }


def _likeliest(token: TokenLogprob) -> dict[str, float] | None:
    """By text, the chosen one always among them; None where there was nothing to go by."""
    if token.logprob is None:
        return None
    # Halves of a character look alike; of those the likelier one, which comes first, is kept.
    likeliest = {other.text: finite(other.logprob) for other in reversed(token.top)}
    return {token.text: finite(token.logprob), **likeliest}
