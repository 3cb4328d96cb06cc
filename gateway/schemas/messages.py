"""The messages of a chat: many shapes on the wire, a role and a text inside."""

from typing import Any, Literal

from gateway.schemas.common import Screen, Wire
from gateway.schemas.parameters import CONTENT_PART, MESSAGE
from handlers.errors import InvalidRequest

MAX_MESSAGES = 2048
MAX_PARTS = 4096  # of all messages together

_LATER_ROLES = frozenset({"tool", "function"})
_OTHER_MEDIA = frozenset({"image_url", "input_audio", "file"})
_PART_TEXT = {"text": "text", "refusal": "refusal"}


class Message(Wire):
    role: Literal["developer", "system", "user", "assistant"]
    content: str


def plain_messages(messages: object, screen: Screen) -> object:
    """`messages` with every content reduced to one text, ready for `list[Message]`, which judges what stays malformed.

    Raises InvalidRequest for what the wire knows and this server does not take, naming the very part.
    """
    if not isinstance(messages, list):
        return messages
    if not 1 <= len(messages) <= MAX_MESSAGES:
        message = f"'messages' must hold 1 to {MAX_MESSAGES} messages, not {len(messages)}."
        raise InvalidRequest(message, "messages", "invalid_value")
    _check_part_count(messages)
    return [_plain_message(message, f"messages[{i}]", screen) for i, message in enumerate(messages)]


def _check_part_count(messages: list[Any]) -> None:
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if parts > MAX_PARTS:
        message = f"'messages' hold {parts} content parts; at most {MAX_PARTS} are taken. Join them."
        raise InvalidRequest(message, "messages", "invalid_value")


def _plain_message(message: object, path: str, screen: Screen) -> object:
    if not isinstance(message, dict):
        return message
    _check_role(message.get("role"), path)
    fields = screen.sort(message, MESSAGE, f"{path}.")
    refusal = fields.pop("refusal", None)
    if isinstance(content := fields.get("content"), list):
        fields["content"] = _joined(content, f"{path}.content", screen)
    elif content is None and fields.get("role") == "assistant":
        fields["content"] = refusal or ""
        return fields
    if refusal is not None:
        screen.ignore(f"{path}.refusal")
    return fields


def _check_role(role: object, path: str) -> None:
    if isinstance(role, str) and role in _LATER_ROLES:
        message = f"Role '{role}' is not supported: tool calls are not available yet. Say it in a 'user' message."
        raise InvalidRequest(message, f"{path}.role", "unsupported_value")


def _joined(parts: list[Any], path: str, screen: Screen) -> str:
    if not parts:
        message = f"'{path}' is an empty list. Send a text or at least one part."
        raise InvalidRequest(message, path, "invalid_value")
    return "\n".join(_text(part, f"{path}[{j}]", screen) for j, part in enumerate(parts))


def _text(part: object, path: str, screen: Screen) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _OTHER_MEDIA:
        message = f"Content of type '{kind}' is not supported: this server's chat models read text only."
        raise InvalidRequest(message, path, "unsupported_value")
    key = _PART_TEXT.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or key is None:
        message = f'\'{path}\' must be a part such as {{"type": "text", "text": "…"}}.'
        raise InvalidRequest(message, path, "invalid_value")
    text = screen.sort(part, CONTENT_PART, f"{path}.").get(key)
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}.{key}' must be a string.", f"{path}.{key}", "invalid_type")
    return text
