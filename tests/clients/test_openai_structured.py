"""Answers held to a format by the starter model, so hot that it would never keep to one by itself."""

import json
from typing import Any

import anyio
import jsonschema
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

pytestmark = [pytest.mark.anyio, pytest.mark.models]

SEEDS = 2
"""Answers a request: each draws with a seed of its own."""

NAME = {"type": "string", "maxLength": 8}


def table(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS = [
    table(name=NAME, age={"type": "integer", "minimum": 0, "maximum": 120}, member={"type": "boolean"}),
    {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4},
    table(kind={"const": "point"}, at={"anyOf": [{"type": "null"}, table(x={"enum": [0, 1]}, y={"enum": [-1, 2.5]})]}),
    {"$defs": {"leaf": NAME}, **table(value={"$ref": "#/$defs/leaf"}, next={"$ref": "#/$defs/leaf"})},
]
ENDLESS = {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 100}
TOOLS = {"get_weather": table(city=NAME, unit={"enum": ["celsius", "fahrenheit"]}), "look_around": table()}


async def ask(client: AsyncOpenAI, **options: Any) -> ChatCompletion:
    options = {"max_tokens": 150, "n": SEEDS, **options}
    completion: ChatCompletion = await client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Fill it in."}], temperature=1.5, seed=11, **options
    )
    assert len(completion.choices) == options["n"]
    return completion


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


async def test_hot_answers_follow_their_schema_every_time(async_client: AsyncOpenAI) -> None:
    async def check(schema: dict[str, Any]) -> None:
        completion = await ask(async_client, response_format=json_schema(schema))
        for choice in completion.choices:
            jsonschema.validate(json.loads(choice.message.content or ""), schema)
            assert choice.finish_reason == "stop"
        assert len({choice.message.content for choice in completion.choices}) > 1, "they are all the same"

    async with async_client, anyio.create_task_group() as asking:
        for schema in SCHEMAS:
            asking.start_soon(check, schema)


async def test_hot_answers_that_must_call_a_tool_do_with_arguments_that_it_takes(async_client: AsyncOpenAI) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}
        for name, parameters in TOOLS.items()
    ]
    async with async_client:
        completion = await ask(async_client, tools=tools, tool_choice="required", parallel_tool_calls=False)
    for choice in completion.choices:
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), TOOLS[call.function.name])
        assert (choice.finish_reason, choice.message.content or "") == ("tool_calls", "")


async def test_a_format_that_is_cut_says_that_it_was_cut(async_client: AsyncOpenAI) -> None:
    async with async_client:
        completion = await ask(async_client, response_format=json_schema(ENDLESS), max_tokens=12)
    for choice in completion.choices:
        assert choice.finish_reason == "length"
        with pytest.raises(ValueError, match="line"):
            json.loads(choice.message.content or "")
