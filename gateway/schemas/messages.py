"""The messages of a chat: many shapes on the wire; a role, a text and the calls of functions inside.

A content with images stays a list of parts, so that their order is kept; any other becomes one text.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, PlainValidator
from pydantic_core import PydanticKnownError

from gateway.schemas.common import Screen, Wire
from gateway.schemas.images import read_image_url
from gateway.schemas.parameters import CONTENT_PART, IMAGE_URL, MESSAGE
from gateway.schemas.tool_choice import custom_tool
from handlers.errors import InvalidRequest

MAX_MESSAGES = 2048
MAX_PARTS = 4096  # of all messages together
MAX_CALLS = 128  # of one message

_OTHER_MEDIA = frozenset({"input_audio", "file"})
_PART_TEXT = {"text": "text", "refusal": "refusal"}
_CALLER_ONLY = ("tool_calls", "function_call", "reasoning_content")


class CalledFunction(Wire):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ToolCall(Wire):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Parts(tuple[Mapping[str, Any], ...]):
    """A content with images: `{"type": "text", "text": …}` and `{"type": "image", "image": ImageInput | RemoteImage}`.

    Nothing that comes as JSON is one.
    """


def _text_or_parts(content: object) -> object:
    if not isinstance(content, str | Parts):
        raise PydanticKnownError("string_type")
    return content


class Message(Wire):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Annotated[str | Parts, PlainValidator(_text_or_parts)]
    name: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], FailFast(), Field(default_factory=list, max_length=MAX_CALLS)]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    function_call: CalledFunction | None = None

    def inner(self) -> dict[str, Any]:
        """As the chat templates know it: only what there is."""
        content = self.content if isinstance(self.content, str) else list(self.content)
        others = self.model_dump(exclude={"role", "content"}).items()
        return {"role": self.role, "content": content} | {
            name: value for name, value in others if value is not None and value != []
        }


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
    fields = screen.sort(message, MESSAGE, f"{path}.")
    _sort_calls(fields, path, screen)
    refusal = fields.pop("refusal", None)
    if isinstance(content := fields.get("content"), list):
        fields["content"] = _joined(content, f"{path}.content", screen, fields.get("role"))
    elif content is None and fields.get("role") == "assistant":
        fields["content"] = refusal or ""
        return fields
    if refusal is not None:
        screen.ignore(f"{path}.refusal")
    return fields


def _sort_calls(fields: dict[str, Any], path: str, screen: Screen) -> None:
    """Bring what belongs to calls into the newer names, and refuse it where it has no place."""
    reasoning = fields.pop("reasoning", None)
    if reasoning is not None:
        fields.setdefault("reasoning_content", reasoning)
    role = fields.get("role")
    for name in _CALLER_ONLY:
        if role != "assistant" and fields.get(name):
            message = f"'{path}.{name}' belongs in a message of role 'assistant'. Leave it out, or change the role."
            raise InvalidRequest(message, f"{path}.{name}", "invalid_value")
    if role == "tool" and "tool_call_id" not in fields:
        message = f"Missing required parameter: '{path}.tool_call_id', the id of the call that this message answers."
        raise InvalidRequest(message, f"{path}.tool_call_id", "missing_required_parameter")
    if role == "function" and "name" not in fields:
        message = f"Missing required parameter: '{path}.name', the function that this message answers for."
        raise InvalidRequest(message, f"{path}.name", "missing_required_parameter")
    if "tool_calls" in fields:
        fields["tool_calls"] = _known_calls(fields["tool_calls"], f"{path}.tool_calls", screen)
    if "function_call" in fields:
        fields["function_call"] = screen.known(fields["function_call"], CalledFunction, f"{path}.function_call")


def _known_calls(calls: object, path: str, screen: Screen) -> object:
    for i, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict) and call.get("type") == "custom":
            raise custom_tool(f"{path}[{i}].type")
    return screen.known(calls, ToolCall, path)


def inner_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What the chat templates know: role, content and, where there are any, calls with the messages that answer them.

    The older `function_call` and role `function` become `tool_calls` and role `tool`, under ids of their own.
    """
    last_call = ""
    inner = []
    for i, message in enumerate(messages):
        fields = message.inner()
        if (call := fields.pop("function_call", None)) is not None:
            last_call = f"call_{i}"
            fields.setdefault("tool_calls", []).append({"id": last_call, "type": "function", "function": call})
        if message.role == "function":
            fields |= {"role": "tool", "tool_call_id": last_call or f"call_{i}"}
        inner.append(fields)
    return inner


def _joined(parts: list[Any], path: str, screen: Screen, role: object) -> str | Parts:
    if not parts:
        message = f"'{path}' is an empty list. Send a text or at least one part."
        raise InvalidRequest(message, path, "invalid_value")
    if not any(_kind(part) == "image_url" for part in parts):
        return "\n".join(_text(part, f"{path}[{j}]", screen) for j, part in enumerate(parts))
    if role != "user":
        place = next(f"{path}[{j}]" for j, part in enumerate(parts) if _kind(part) == "image_url")
        message = f"'{place}' is an image, which only messages of role 'user' may have. Move it into one."
        raise InvalidRequest(message, place, "invalid_value")
    return Parts(_part(part, f"{path}[{j}]", screen) for j, part in enumerate(parts))


def _kind(part: object) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def _part(part: Any, path: str, screen: Screen) -> Mapping[str, Any]:
    if _kind(part) != "image_url":
        return {"type": "text", "text": _text(part, path, screen)}
    place = f"{path}.image_url"
    image = screen.sort(part, CONTENT_PART, f"{path}.").get("image_url")
    if isinstance(image, dict):
        image, place = screen.sort(image, IMAGE_URL, f"{place}.").get("url"), f"{place}.url"
    return {"type": "image", "image": read_image_url(image, place)}


def _text(part: object, path: str, screen: Screen) -> str:
    kind = _kind(part)
    if kind in _OTHER_MEDIA:
        message = f"Content of type '{kind}' is not supported: this server's chat models read text and images."
        raise InvalidRequest(message, path, "unsupported_value")
    key = _PART_TEXT.get(kind or "")
    if not isinstance(part, dict) or key is None:
        message = f'\'{path}\' must be a part such as {{"type": "text", "text": "…"}}.'
        raise InvalidRequest(message, path, "invalid_value")
    text = screen.sort(part, CONTENT_PART, f"{path}.").get(key)
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}.{key}' must be a string.", f"{path}.{key}", "invalid_type")
    return text
