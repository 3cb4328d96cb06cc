"""POST /v1/chat/completions: what is sent whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.schemas.reply import Stamp, finite, usage
from handlers.base import Generation
from handlers.chat.types import Alternative, Delta, TokenLogprob, ToolCallDelta


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How the answers are written. as_function_call: calls in the older form, one an answer."""

    logprobs: bool = False
    as_function_call: bool = False

    def reason(self, finish_reason: str | None) -> str | None:
        return "function_call" if self.as_function_call and finish_reason == "tool_calls" else finish_reason


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.logprobs.extend(delta.logprobs)
        self.finish_reason = delta.finish_reason
        self.tokens = delta.completion_tokens
        for piece in delta.tool_calls:
            self._add_call(piece)

    def _add_call(self, piece: ToolCallDelta) -> None:
        call = self.calls.setdefault(piece.index, {"id": "", "name": "", "arguments": []})
        call["id"] = piece.id or call["id"]
        call["name"] = piece.name or call["name"]
        call["arguments"].append(piece.arguments)

    def tool_calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
            }
            for _, call in sorted(self.calls.items())
        ]


class ChatReply:
    """Gathers the deltas of `n` answers into one completion."""

    def __init__(self, stamp: Stamp, form: ChatForm, *, n: int, service_tier: str) -> None:
        self._stamp = stamp
        self._form = form
        self._service_tier = service_tier
        self._answers = [_Answer() for _ in range(n)]

    def add(self, delta: Delta) -> None:
        self._answers[delta.index].add(delta)

    def body(self, generation: Generation) -> dict[str, Any]:
        return {
            **self._stamp.head("chat.completion"),
            "service_tier": self._service_tier,
            "choices": [self._choice(i, answer) for i, answer in enumerate(self._answers)],
            "usage": usage(generation, sum(answer.tokens for answer in self._answers)),
        }

    def _choice(self, index: int, answer: _Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(answer),
            "logprobs": chat_logprobs(answer.logprobs) if self._form.logprobs else None,
            "finish_reason": self._form.reason(answer.finish_reason),
        }

    def _message(self, answer: _Answer) -> dict[str, Any]:
        text, reasoning, calls = "".join(answer.text), "".join(answer.reasoning), answer.tool_calls()
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        message["annotations"] = []
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls and self._form.as_function_call:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        return message


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [{**_logprob(token), "top_logprobs": [_logprob(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _logprob(token: TokenLogprob | Alternative) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.bytes)}
