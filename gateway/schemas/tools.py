"""The functions a model may call, in the newer form (`tools`) and the older one (`functions`)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from gateway.schemas.common import Screen, Wire
from gateway.schemas.json_schema import Schema
from gateway.schemas.tool_choice import custom_tool, read_function_call, read_tool_choice
from handlers.chat.types import Tool, ToolChoice
from handlers.errors import InvalidRequest

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Wire):
    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] = ""
    parameters: Schema = Field(default_factory=dict)
    strict: bool = False

    def to_tool(self) -> Tool:
        return Tool(self.name, self.description, self.parameters, self.strict)


class FunctionTool(Wire):
    type: Literal["function"]
    function: Function


class ToolParams(Wire):
    """The part of a chat's parameters that says which functions there are."""

    tools: Annotated[list[FunctionTool], Field(default_factory=list, max_length=MAX_TOOLS)]
    tool_choice: Annotated[ToolChoice, PlainValidator(read_tool_choice)] = ToolChoice()
    parallel_tool_calls: bool = True
    functions: Annotated[list[Function], Field(default_factory=list, max_length=MAX_TOOLS)]
    function_call: Annotated[ToolChoice, PlainValidator(read_function_call)] = ToolChoice()

    @property
    def as_function_call(self) -> bool:
        """Whether calls are answered in the older form, one at most."""
        return bool(self.functions)

    def inner_tools(self) -> tuple[Tool, ...]:
        return tuple(function.to_tool() for function in self.functions or [tool.function for tool in self.tools])

    def inner_choice(self) -> ToolChoice:
        return self.function_call if self.functions else self.tool_choice

    def check_tools(self) -> None:
        """Raises InvalidRequest where the parts do not fit together."""
        if self.tools and self.functions:
            message = "'functions' is the older form of 'tools'. Send one of them."
            raise InvalidRequest(message, "functions", "invalid_value")
        tools = [tool.function.name for tool in self.tools]
        functions = [function.name for function in self.functions]
        _refuse_twins(tools, "tools[{}].function.name")
        _refuse_twins(functions, "functions[{}].name")
        _check_choice(self.tool_choice, tools, "tool_choice", "tools")
        _check_choice(self.function_call, functions, "function_call", "functions")


def known_tools(tools: object, screen: Screen) -> object:
    """`tools` with what no table knows taken out, ready for `list[FunctionTool]`, which judges what stays malformed.

    Raises InvalidRequest for custom tools.
    """
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type") == "custom":
            raise custom_tool(f"tools[{i}].type")
    return screen.known(tools, FunctionTool, "tools")


def _refuse_twins(names: Sequence[str], path: str) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            where = path.format(i)
            message = f"Invalid value for '{where}': there is another function named '{name}'. Rename one of them."
            raise InvalidRequest(message, where, "invalid_value")
        seen.add(name)


def _check_choice(choice: ToolChoice, names: Sequence[str], param: str, tools: str) -> None:
    known = set(names)
    if not known and (choice.mode == "required" or choice.names):
        message = f"'{param}' asks for a call, but there are no '{tools}'. Send some, or leave '{param}' out."
        raise InvalidRequest(message, param, "invalid_value")
    for name in choice.names:
        if name not in known:
            message = f"'{param}' names '{name[:64]}', which is not among '{tools}'. Add it there, or name another one."
            raise InvalidRequest(message, param, "invalid_value")
