"""Which function must, may or must not be called: `tool_choice`, and the older `function_call`."""

from typing import Any

from handlers.chat.types import ToolChoice
from handlers.errors import InvalidRequest


def read_tool_choice(value: object) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("required", (name,))
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]}}:
            return ToolChoice(mode, tuple(_allowed_name(tool, i) for i, tool in enumerate(tools)) or _no_names())
        case {"type": "custom"}:
            raise custom_tool("tool_choice.type")
    message = (
        'Invalid value for \'tool_choice\': send "none", "auto", "required", '
        '{"type": "function", "function": {"name": "…"}} or {"type": "allowed_tools", "allowed_tools": {…}}.'
    )
    raise InvalidRequest(message, "tool_choice", "invalid_value")


def read_function_call(value: object) -> ToolChoice:
    match value:
        case "none" | "auto":
            return ToolChoice(value)
        case {"name": str(name)}:
            return ToolChoice("required", (name,))
    message = 'Invalid value for \'function_call\': send "none", "auto" or {"name": "…"}.'
    raise InvalidRequest(message, "function_call", "invalid_value")


def _allowed_name(tool: Any, i: int) -> str:
    path = f"tool_choice.allowed_tools.tools[{i}]"
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
        case {"type": "custom"}:
            raise custom_tool(f"{path}.type")
    message = f'\'{path}\' must be of the form {{"type": "function", "function": {{"name": "…"}}}}.'
    raise InvalidRequest(message, path, "invalid_value")


def _no_names() -> tuple[str, ...]:
    message = "'tool_choice.allowed_tools.tools' is empty. Name a tool, or send \"none\" as 'tool_choice'."
    raise InvalidRequest(message, "tool_choice.allowed_tools.tools", "invalid_value")


def custom_tool(path: str) -> InvalidRequest:
    message = f"Invalid value for '{path}': tools of type 'custom' are not supported. Describe it as a 'function'."
    return InvalidRequest(message, path, "unsupported_value")
