"""Every kind of answer to a chat, whole and streamed: several, with calls, thoughts and log probabilities."""

from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from handlers.chat.types import ChatRequest, Delta, ToolCallDelta
from tests.gateway.answers import CALLS, LIKELY, ONE_CALL, THOUGHTS, TWO
from tests.gateway.fakes import Connection, FakeChat, app
from tests.gateway.test_routes_chat import CHAT, STREAM, post

pytestmark = pytest.mark.anyio

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("get_weather", "get_time")]
FUNCTIONS = [tool["function"] for tool in TOOLS]
WEATHER_CALL = {
    "id": "call_a",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'},
}
TIME_CALL = {"id": "call_b", "type": "function", "function": {"name": "get_time", "arguments": '{"zone":"CET"}'}}


async def whole(handler: FakeChat, **fields: Any) -> dict[str, Any]:
    response = await post(handler, {**CHAT, **fields})
    assert response.status_code == 200
    body: dict[str, Any] = orjson.loads(response.content)
    ChatCompletion.model_validate(body, strict=True)
    return body


async def chunks(handler: FakeChat, **fields: Any) -> list[dict[str, Any]]:
    """All of the stream's choices in order."""
    response = await post(handler, {**STREAM, **fields})
    *events, done, end = response.content.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    for event in events:
        ChatCompletionChunk.model_validate_json(event[6:], strict=True)
    return [choice for event in events for choice in orjson.loads(event[6:])["choices"]]


async def test_calls_come_whole_in_the_message() -> None:
    body = await whole(FakeChat(CALLS), tools=TOOLS)
    [choice] = body["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["tool_calls"] == [WEATHER_CALL, TIME_CALL]
    assert choice["finish_reason"] == "tool_calls"
    assert body["usage"]["completion_tokens"] == 14


async def test_content_is_null_when_there_are_only_calls() -> None:
    [choice] = (await whole(FakeChat(ONE_CALL), tools=TOOLS))["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [WEATHER_CALL]


async def test_calls_are_streamed_name_first_and_arguments_in_pieces() -> None:
    deltas = [choice["delta"] for choice in await chunks(FakeChat(CALLS), tools=TOOLS)]
    assert deltas[2:6] == [
        {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": CALL_OF_NO_ARGUMENTS}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Zürich"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "get_time", "arguments": '{"zone"'},
                }
            ]
        },
    ]


CALL_OF_NO_ARGUMENTS = {"name": "get_weather", "arguments": ""}


async def test_who_sends_functions_is_answered_in_the_older_form() -> None:
    handler = FakeChat(ONE_CALL)
    [choice] = (await whole(handler, functions=FUNCTIONS))["choices"]
    assert choice["message"]["function_call"] == WEATHER_CALL["function"]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    request, _ = handler.calls[0]
    assert isinstance(request, ChatRequest) and not request.parallel_tool_calls


async def test_the_older_form_is_streamed_too() -> None:
    choices = await chunks(FakeChat(ONE_CALL), functions=FUNCTIONS)
    assert [choice["delta"] for choice in choices][1:] == [
        {"function_call": {"name": "get_weather", "arguments": ""}},
        {"function_call": {"arguments": '{"city":'}},
        {"function_call": {"arguments": '"Zürich"}'}},
        {},
    ]
    assert choices[-1]["finish_reason"] == "function_call"


async def test_a_call_in_one_delta_is_whole_in_either_form() -> None:
    pieces = (ToolCallDelta(0, "call_a", "get_weather"), ToolCallDelta(0, arguments="{}"))
    deltas = [Delta("", 3, "tool_calls", tool_calls=pieces)]
    older = await chunks(FakeChat(deltas), functions=FUNCTIONS)
    assert older[1]["delta"] == {"function_call": {"name": "get_weather", "arguments": "{}"}}
    newer = await chunks(FakeChat(deltas), tools=TOOLS)
    function = {"name": "get_weather", "arguments": "{}"}
    assert newer[1]["delta"] == {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": function}]}


async def test_several_answers_are_told_apart_by_index() -> None:
    body = await whole(FakeChat(TWO), n=2)
    assert [(choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in body["choices"]] == [
        (0, "Yes! Sure", "stop"),
        (1, "No", "stop"),
    ]
    assert body["usage"]["completion_tokens"] == 6


async def test_each_of_several_streamed_answers_has_its_own_role_and_finish() -> None:
    choices = await chunks(FakeChat(TWO), n=2)
    assert [(choice["index"], choice["delta"].get("content"), choice["finish_reason"]) for choice in choices] == [
        (0, "", None),
        (1, "", None),
        (1, "No", None),
        (0, "Yes", None),
        (0, "!", None),
        (1, None, "stop"),
        (0, " Sure", None),
        (0, None, "stop"),
    ]
    assert [choice["index"] for choice in choices if "role" in choice["delta"]] == [0, 1]


async def test_thoughts_come_apart_from_what_is_said() -> None:
    body = await whole(FakeChat(THOUGHTS, reasoning_tokens=2, cached_tokens=8))
    assert body["choices"][0]["message"]["reasoning_content"] == "Hm. 4?"
    assert body["choices"][0]["message"]["content"] == "Four"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    deltas = [choice["delta"] for choice in await chunks(FakeChat(THOUGHTS))]
    assert deltas[1:] == [{"reasoning_content": "Hm. "}, {"reasoning_content": "4?"}, {"content": "Four"}, {}]


async def test_log_probabilities_are_finite_and_complete() -> None:
    body = await whole(FakeChat(LIKELY), logprobs=True, top_logprobs=2)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    first, second, third = logprobs["content"]
    assert first == {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
            {"token": "Yo", "logprob": -1.5, "bytes": [89, 111]},
        ],
    }
    assert second["bytes"] == [32, 195, 188]
    assert third["logprob"] == -9999.0
    assert [other["logprob"] for other in third["top_logprobs"]] == [-0.125, -9999.0]


async def test_every_token_has_its_log_probability_in_the_stream_even_without_text() -> None:
    choices = await chunks(FakeChat(LIKELY), logprobs=True)
    assert choices[0]["logprobs"] is None
    streamed = [(choice["delta"], choice["logprobs"]["content"][0]["token"]) for choice in choices[1:4]]
    assert streamed == [({"content": "Hi"}, "Hi"), ({"content": ""}, " ü"), ({"content": " ü!"}, "!")]
    body = await whole(FakeChat(LIKELY), logprobs=True)
    content = [entry for choice in choices[1:4] for entry in choice["logprobs"]["content"]]
    assert content == body["choices"][0]["logprobs"]["content"]


async def test_log_probabilities_that_nobody_asked_for_stay_inside() -> None:
    assert (await whole(FakeChat(LIKELY)))["choices"][0]["logprobs"] is None
    assert {choice["logprobs"] for choice in await chunks(FakeChat(LIKELY))} == {None}


async def test_a_token_that_is_no_character_makes_no_event() -> None:
    choices = await chunks(FakeChat([Delta("a", 1), Delta("", 2), Delta("b", 3, "stop")]))
    assert [choice["delta"].get("content") for choice in choices] == ["", "a", "b", None]


async def test_priority_is_background() -> None:
    handler = FakeChat()
    assert (await whole(handler, priority=3))["service_tier"] == "flex"


@pytest.mark.parametrize(
    ("caller", "salt", "expected"),
    [(None, None, ""), (None, "mine", ":mine"), ("digest", None, "digest:"), ("digest", "mine", "digest:mine")],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_prefixes_are_shared_within_a_key_and_a_salt_only(
    path: str, caller: str | None, salt: str | None, expected: str
) -> None:
    handler = FakeChat()
    body = {**CHAT, "prompt": "Once", "cache_salt": salt}
    connection = Connection(path, body)
    if caller is not None:
        connection.scope["gateway.caller"] = caller
    await app(handler)(connection.scope, connection.receive, connection.send)
    [(request, _)] = handler.calls
    assert (connection.status, request.cache_salt) == (200, expected)
