"""POST /v1/chat/completions: what is streamed."""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.schemas.chat_reply import ChatForm, chat_logprobs
from gateway.schemas.reply import Stamp, usage
from gateway.sse import frame
from handlers.base import Generation
from handlers.chat.types import Delta, ToolCallDelta

_ROLE = b'{"role":"assistant","content":"","refusal":null}'


class ChatChunks:
    """Writes the events of one stream. All but the delta is encoded once: a token costs one small `orjson.dumps`."""

    def __init__(self, stamp: Stamp, form: ChatForm, *, n: int, include_usage: bool) -> None:
        self._head = orjson.dumps(stamp.head("chat.completion.chunk"))[:-1] + b',"choices":['
        self._tail = b'}],"usage":null}' if include_usage else b"}]}"
        self._form = form
        self._include_usage = include_usage
        self._openings = [b'%b{"index":%d,"delta":' % (self._head, index) for index in range(n)]
        self._tokens = [0] * n
        self._begun = False

    def events(self, delta: Delta) -> bytes:
        """The events of one delta, which may be none: a token need not be a character."""
        events = b"" if self._begun else self._roles()
        opening = self._openings[delta.index]
        self._tokens[delta.index] = delta.completion_tokens
        if delta.text or delta.reasoning or delta.tool_calls or (delta.logprobs and self._form.logprobs):
            events += self._chunk(opening, self._delta(delta), self._logprobs(delta))
        if delta.finish_reason is not None:
            reason = orjson.dumps(self._form.reason(delta.finish_reason))
            events += self._chunk(opening, b"{}", finish_reason=reason)
        return events

    def last(self, generation: Generation) -> bytes:
        """The event with the usage, if it was asked for."""
        if not self._include_usage:
            return b""
        counts = usage(generation, sum(self._tokens))
        return frame(b'%b],"usage":%b}' % (self._head, orjson.dumps(counts)))

    def _roles(self) -> bytes:
        # All at once and in order: the helper of OpenAI's SDK fails where a later answer begins before the first.
        self._begun = True
        return b"".join(self._chunk(opening, _ROLE) for opening in self._openings)

    def _delta(self, delta: Delta) -> bytes:
        if not (delta.reasoning or delta.tool_calls):
            return b'{"content":%b}' % orjson.dumps(delta.text)
        fields: dict[str, Any] = {}
        if delta.reasoning:
            fields["reasoning_content"] = delta.reasoning
        if delta.text:
            fields["content"] = delta.text
        if delta.tool_calls:
            fields |= self._calls(delta.tool_calls)
        return orjson.dumps(fields)

    def _calls(self, pieces: Sequence[ToolCallDelta]) -> dict[str, Any]:
        # One entry a call: OpenAI's SDK takes two entries of its first chunk for two calls, whatever their index.
        calls: dict[int, list[ToolCallDelta]] = {}
        for piece in pieces:
            calls.setdefault(piece.index, []).append(piece)
        if self._form.as_function_call:
            # The older form has room for one call, and the handler was asked for no more.
            return {"function_call": _function(calls.get(0, []))}
        return {"tool_calls": [_tool_call(index, call) for index, call in calls.items()]}

    def _logprobs(self, delta: Delta) -> bytes:
        return orjson.dumps(chat_logprobs(delta.logprobs)) if self._form.logprobs and delta.logprobs else b"null"

    def _chunk(self, opening: bytes, delta: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        choice = b'%b,"logprobs":%b,"finish_reason":%b' % (delta, logprobs, finish_reason)
        return frame(b"%b%b%b" % (opening, choice, self._tail))


def _tool_call(index: int, pieces: Sequence[ToolCallDelta]) -> dict[str, Any]:
    """id, type and name come once, with the first piece; the index always."""
    fields: dict[str, Any] = {"index": index}
    if pieces[0].id is not None:
        fields |= {"id": pieces[0].id, "type": "function"}
    return {**fields, "function": _function(pieces)}


def _function(pieces: Sequence[ToolCallDelta]) -> dict[str, str]:
    name = next(({"name": piece.name} for piece in pieces if piece.name is not None), {})
    return {**name, "arguments": "".join(piece.arguments for piece in pieces)}
