"""Past calls and their results, for templates that know of them and for those that do not."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.chat.tools.formats import ToolFormat
from handlers.chat.types import Tool

Message = Mapping[str, Any]


def for_template(messages: Sequence[Message], form: ToolFormat) -> list[dict[str, Any]]:
    """The messages as chat templates that know tools expect them: arguments parsed, ids no longer than they may be."""
    return [_for_template(message, form) for message in messages]


def as_text(messages: Sequence[Message], form: ToolFormat, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The messages without roles or fields for tools.

    The tools are described in the system message, calls are written as the model would have, and the results that
    follow them become one message of the user.
    """
    written: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        plain = _plain(message, form)
        if is_result and after_result:
            written[-1]["content"] += "\n" + plain["content"]
        else:
            written.append(plain)
        after_result = is_result
    return _with_system(written, form.describe(tools)) if tools else written


def _for_template(message: Message, form: ToolFormat) -> dict[str, Any]:
    changed = dict(message)
    if message.get("tool_calls"):
        changed["tool_calls"] = [_call(call, form) for call in message["tool_calls"]]
    if form.short_ids and message.get("tool_call_id"):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    return changed


def _call(call: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    function = {**call["function"], "arguments": _parsed(call["function"].get("arguments"))}
    changed = {**call, "function": function}
    if form.short_ids and call.get("id"):
        changed["id"] = _short(call["id"])
    return changed


def _parsed(arguments: Any) -> Any:
    """Templates write arguments with `tojson`, which would quote a text once more."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _short(id: str) -> str:
    """Mistral's templates refuse ids that are not nine letters or digits."""
    if len(id) == 9 and id.isalnum():
        return id
    return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]


def _plain(message: Message, form: ToolFormat) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": form.write_result(content)}
    if not message.get("tool_calls"):
        return dict(message)
    functions = [call["function"] for call in message["tool_calls"]]
    calls = form.write_calls([(function["name"], function.get("arguments") or "{}") for function in functions])
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": f"{content}\n{calls}" if content else calls}


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] in ("system", "developer"):
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
