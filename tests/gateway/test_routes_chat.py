"""POST /v1/chat/completions through the real route, over a model that is a list of deltas."""

import asyncio
import re
from typing import Any

import httpx2
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from batching.errors import EngineFailed, QueueFull
from batching.job import Priority
from handlers.chat.types import Delta
from tests.gateway.fakes import Connection, FakeChat, FakeEmbeddings, app

pytestmark = pytest.mark.anyio

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**CHAT, "stream": True}

HEAD = (
    '{"id":"<ID>","object":"chat.completion.chunk","created":<CREATED>,'
    '"model":"gpt-4o-mini","system_fingerprint":"<FP>"'
)
GOLDEN = (
    f'data: {HEAD},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"","refusal":null}},'
    '"logprobs":null,"finish_reason":null}]}\n\n'
    f'data: {HEAD},"choices":[{{"index":0,"delta":{{"content":"Hel"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
    f'data: {HEAD},"choices":[{{"index":0,"delta":{{"content":"lo \\"wörld\\"\\n"}},'
    '"logprobs":null,"finish_reason":null}]}\n\n'
    f'data: {HEAD},"choices":[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
    "data: [DONE]\n\n"
)
USAGE = (
    '"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,'
    '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}'
)
GOLDEN_WITH_USAGE = GOLDEN.replace("}]}\n\n", '}],"usage":null}\n\n').replace(
    "data: [DONE]", f'data: {HEAD},"choices":[],{USAGE}\n\ndata: [DONE]'
)


async def post(handler: FakeChat, body: object, **options: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler, **options))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post("/v1/chat/completions", json=body)


def golden(template: str, content: bytes) -> bytes:
    """The template with the id, time and fingerprint of the first chunk: every other chunk must have the same."""
    first = orjson.loads(content.split(b"\n", 1)[0].removeprefix(b"data: "))
    filled = template.replace("<ID>", first["id"]).replace("<CREATED>", str(first["created"]))
    return filled.replace("<FP>", first["system_fingerprint"]).encode()


async def test_a_completion_has_openais_exact_shape() -> None:
    handler = FakeChat()
    response = await post(handler, CHAT)
    body = response.json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", body["id"])
    assert re.fullmatch(r"fp_[0-9a-f]{12}", body["system_fingerprint"])
    assert body == {
        "id": body["id"],
        "object": "chat.completion",
        "created": body["created"],
        "model": "gpt-4o-mini",
        "system_fingerprint": body["system_fingerprint"],
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": 'Hello "wörld"\n',
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    ChatCompletion.model_validate(body, strict=True)
    assert (handler.open_generations, handler.closed_generations) == (0, 1)
    assert "x-ignored-params" not in response.headers


async def test_the_fingerprint_is_the_same_for_the_same_model() -> None:
    first, second = (await post(FakeChat(), CHAT)).json(), (await post(FakeChat(), CHAT)).json()
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert first["id"] != second["id"]


async def test_a_stream_is_openais_byte_for_byte() -> None:
    handler = FakeChat()
    response = await post(handler, STREAM)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == golden(GOLDEN, response.content)
    assert (handler.open_generations, handler.closed_generations) == (0, 1)


async def test_a_stream_with_usage_is_openais_byte_for_byte() -> None:
    response = await post(FakeChat(), {**STREAM, "stream_options": {"include_usage": True}})
    assert response.content == golden(GOLDEN_WITH_USAGE, response.content)
    for line in response.content.split(b"\n\n")[:-2]:
        ChatCompletionChunk.model_validate_json(line.removeprefix(b"data: "), strict=True)


async def test_text_of_the_last_delta_comes_before_the_finish() -> None:
    response = await post(FakeChat([Delta("all of it", 3, "length")]), STREAM)
    chunks = [orjson.loads(line[6:]) for line in response.content.split(b"\n\n")[:-2]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "all of it"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]


async def test_flex_runs_in_the_background_and_says_so() -> None:
    handler = FakeChat()
    response = await post(handler, {**CHAT, "service_tier": "flex"})
    assert response.json()["service_tier"] == "flex"
    response = await post(handler, {**CHAT, "service_tier": "priority"})
    assert response.json()["service_tier"] == "default"
    assert [caller.priority for _, caller in handler.calls] == [Priority.BACKGROUND, Priority.INTERACTIVE]


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_ignored_parameters_are_listed_in_the_reply(body: dict[str, object]) -> None:
    response = await post(FakeChat(), {**body, "user": "ada", "store": True})
    assert response.headers["x-ignored-params"] == "store,user"


async def test_strict_params_refuse_an_unknown_name() -> None:
    response = await post(FakeChat(), {**CHAT, "colour": "red"}, strict_params=True)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "colour")


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("gpt-9", 404, "model_not_found"), (None, 400, "missing_required_parameter")],
)
async def test_a_model_that_is_unknown_or_missing(model: str | None, status: int, code: str) -> None:
    response = await post(FakeChat(), {**CHAT, "model": model})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", code)


async def test_a_model_for_something_else_is_refused() -> None:
    transport = httpx2.ASGITransport(app=app(FakeChat(), FakeEmbeddings()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "model": "mini-embed"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


async def test_a_loading_model_answers_503() -> None:
    response = await post(FakeChat(), CHAT, ready=False)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_full_queue_answers_503_streaming_or_not(body: dict[str, object]) -> None:
    response = await post(FakeChat(refusal=QueueFull(1)), body)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_failure_before_the_first_token_has_its_own_status(body: dict[str, object]) -> None:
    handler = FakeChat(error=EngineFailed())
    response = await post(handler, body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert (handler.open_generations, handler.closed_generations) == (0, 1)


async def test_a_failure_in_midstream_is_the_last_event() -> None:
    handler = FakeChat(error=EngineFailed(), wait_at=1)
    response = await post(handler, STREAM)
    events = response.content.split(b"\n\n")
    assert response.status_code == 200
    assert orjson.loads(events[1][6:])["choices"][0]["delta"] == {"content": "Hel"}
    assert orjson.loads(events[2][6:])["error"]["code"] == "engine_failed"
    assert events[3:] == [b""]
    assert (handler.open_generations, handler.closed_generations) == (0, 1)


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_before_the_first_token_ends_the_generation(body: dict[str, object]) -> None:
    handler = FakeChat()
    handler.gate.clear()
    connection = Connection("/v1/chat/completions", body)
    await connection.leave_when(handler.started, app(handler))
    assert (handler.open_generations, handler.closed_generations) == (0, 1)
    assert connection.status != 200


async def test_a_client_that_leaves_in_midstream_ends_the_generation() -> None:
    handler = FakeChat(wait_at=2)
    handler.gate.clear()
    connection = Connection("/v1/chat/completions", STREAM)
    await connection.leave_when(handler.started, app(handler))
    assert (handler.open_generations, handler.closed_generations) == (0, 1)
    assert connection.status == 200
    assert b'"Hel"' in connection.content
    assert b"[DONE]" not in connection.content


async def test_tokens_are_sent_as_they_come() -> None:
    handler = FakeChat(wait_at=1)
    handler.gate.clear()
    connection = Connection("/v1/chat/completions", STREAM)

    async def look() -> None:
        await handler.started.wait()
        assert connection.content.count(b"data: ") == 2
        handler.gate.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(look())
        await app(handler)(connection.scope, connection.receive, connection.send)
    assert connection.content == golden(GOLDEN, connection.content)


@pytest.mark.parametrize(("stream", "deadline"), [(True, 600.0), (False, 12.5)])
async def test_the_request_id_and_the_deadline_of_this_kind_of_reply_reach_the_handler(
    stream: bool, deadline: float
) -> None:
    handler = FakeChat()
    connection = Connection("/v1/chat/completions", {**CHAT, "stream": stream})
    connection.scope.update({"gateway.request_id": "req_1", "gateway.deadline": 600.0, "gateway.reply_deadline": 12.5})
    await app(handler)(connection.scope, connection.receive, connection.send)
    [(_, caller)] = handler.calls
    assert (caller.request_id, caller.deadline) == ("req_1", deadline)
