"""Functions that a model may call, in both forms, and messages about calls."""

from typing import Any

import pytest

from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.common import Screen
from handlers.chat.types import Tool, ToolChoice
from tests.gateway.parsing import HELLO, parse_chat, refusal_of_chat

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get_time", "strict": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *tools: object) -> dict[str, object]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(depth - 1):
        schema = {"a": schema}
    return schema


def test_tools_reach_the_handler() -> None:
    request = parse_chat(tools=[WEATHER, TIME])
    assert request.tools == (Tool("get_weather", "Now.", SCHEMA), Tool("get_time", strict=True))
    assert request.tool_choice == ToolChoice("auto")
    assert request.parallel_tool_calls
    assert not parse_chat(tools=[WEATHER], parallel_tool_calls=False).parallel_tool_calls


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ToolChoice("none")),
        ("auto", ToolChoice("auto")),
        ("required", ToolChoice("required")),
        (named("get_time"), ToolChoice("required", ("get_time",))),
        (allowed("auto", named("get_time")), ToolChoice("auto", ("get_time",))),
        (
            allowed("required", named("get_time"), named("get_weather")),
            ToolChoice("required", ("get_time", "get_weather")),
        ),
    ],
)
def test_every_form_of_tool_choice_is_taken(choice: object, expected: ToolChoice) -> None:
    assert parse_chat(tools=[WEATHER, TIME], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ("get_weather", "tools"),
        (["get_weather"], "tools[0]"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"function": {"name": "f"}}], "tools[0].type"),
        ([WEATHER, {"type": "custom", "custom": {"name": "f"}}], "tools[1].type"),
        ([{"type": "web_search"}], "tools[0].type"),
        ([named("")], "tools[0].function.name"),
        ([named("a" * 65)], "tools[0].function.name"),
        ([named("get weather")], "tools[0].function.name"),
        ([named("f\n")], "tools[0].function.name"),
        ([WEATHER, WEATHER], "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "f", "strict": 1}}], "tools[0].function.strict"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": "f", "parameters": nested(65)}}], "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": "f", "parameters": nested(200)}}], "tools[0].function.parameters"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"a": "b" * 131_072}}}],
            "tools[0].function.parameters",
        ),
        ([named(f"f{i}") for i in range(129)], "tools"),
    ],
)
def test_tools_that_cannot_be_taken_are_refused_by_path(tools: object, param: str) -> None:
    assert refusal_of_chat(tools=tools).param == param


def test_the_largest_schema_is_taken() -> None:
    assert parse_chat(tools=[{"type": "function", "function": {"name": "f", "parameters": nested(64)}}]).tools


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("any", "tool_choice"),
        (True, "tool_choice"),
        ({}, "tool_choice"),
        ({"type": "function"}, "tool_choice"),
        ({"type": "custom", "custom": {"name": "get_time"}}, "tool_choice.type"),
        (named("get_age"), "tool_choice"),
        (allowed("none", named("get_time")), "tool_choice"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("auto", named("get_age")), "tool_choice"),
        (allowed("auto", named("get_time"), "get_age"), "tool_choice.allowed_tools.tools[1]"),
        (allowed("auto", {"type": "custom"}), "tool_choice.allowed_tools.tools[0].type"),
    ],
)
def test_a_tool_choice_that_cannot_be_had_is_refused(choice: object, param: str) -> None:
    assert refusal_of_chat(tools=[TIME], tool_choice=choice).param == param


@pytest.mark.parametrize("neutral", ["none", "auto"])
def test_a_tool_choice_without_tools_is_taken_only_if_it_asks_for_nothing(neutral: str) -> None:
    assert parse_chat(tool_choice=neutral, function_call=neutral, tools=[], functions=[]).tools == ()
    assert refusal_of_chat(tool_choice="required").param == "tool_choice"
    assert refusal_of_chat(function_call={"name": "f"}).param == "function_call"


def test_functions_are_tools_of_which_one_is_called() -> None:
    request = parse_chat(functions=[WEATHER["function"]], function_call={"name": "get_weather"})
    assert request.tools == (Tool("get_weather", "Now.", SCHEMA),)
    assert request.tool_choice == ToolChoice("required", ("get_weather",))
    assert not request.parallel_tool_calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [WEATHER["function"]], "tools": [TIME]}, "functions"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions[1].name"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"description": "f"}]}, "functions[0].name"),
    ],
)
def test_functions_that_cannot_be_taken_are_refused_by_path(fields: dict[str, Any], param: str) -> None:
    assert refusal_of_chat(**fields).param == param


def test_what_is_unknown_in_a_tool_is_reported_and_null_is_absent() -> None:
    screen = Screen()
    function = {"name": "f", "strict": None, "parameters": None, "colour": "red"}
    assert parse_chat(screen, tools=[{"type": "function", "function": function, "x": 1}]).tools == (Tool("f"),)
    assert screen.ignored == {"tools[].function.colour", "tools[].x"}


def test_calls_and_their_results_become_what_templates_know() -> None:
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "Let me look."},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Sunny."}], "name": "w"},
    ]
    assert parse_chat(messages=messages).messages == [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Let me look."},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny.", "name": "w"},
    ]


def test_older_calls_and_results_become_newer_ones() -> None:
    messages = [
        {"role": "function", "name": "get_time", "content": "Noon."},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "get_weather", "content": "Sunny."},
    ]
    assert parse_chat(messages=messages).messages == [
        {"role": "tool", "name": "get_time", "content": "Noon.", "tool_call_id": "call_0"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "call_1"}]},
        {"role": "tool", "name": "get_weather", "content": "Sunny.", "tool_call_id": "call_1"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "4"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "4", "tool_call_id": ""}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "call_1"}, "messages[0].content"),
        ({"role": "function", "content": "4"}, "messages[0].name"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "a", "function_call": CALL["function"]}, "messages[0].function_call"),
        ({"role": "user", "content": "a", "reasoning": "b"}, "messages[0].reasoning_content"),
        ({"role": "assistant", "tool_calls": CALL}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [CALL, {"type": "custom"}]}, "messages[0].tool_calls[1].type"),
        ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[0].tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call.arguments"),
    ],
)
def test_calls_that_cannot_be_read_are_refused_by_path(message: dict[str, Any], param: str) -> None:
    assert refusal_of_chat(messages=[message]).param == param


def test_only_who_sends_functions_gets_function_calls() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], %b}'
    older = ChatCompletionParams.parse(body % b'"functions": [{"name": "f"}]', Screen())
    newer = ChatCompletionParams.parse(body % b'"function_call": "auto"', Screen())
    assert (older.as_function_call, newer.as_function_call) == (True, False)
