"""POST /v1/completions through the real route, over a model that is a list of deltas."""

import re
from typing import Any

import httpx2
import orjson
import pytest
from openai.types import Completion

from batching.errors import EngineFailed, QueueFull
from batching.job import Priority
from handlers.chat.types import CompletionRequest, Delta
from tests.gateway.answers import LIKELY, TWO, token
from tests.gateway.fakes import Connection, FakeChat, app

pytestmark = pytest.mark.anyio

BODY = {"model": "gpt-4o-mini", "prompt": "Once"}
STREAM = {**BODY, "stream": True}


async def post(handler: FakeChat, body: object) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app(handler))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post("/v1/completions", json=body)


async def whole(handler: FakeChat, **fields: Any) -> dict[str, Any]:
    response = await post(handler, {**BODY, **fields})
    assert response.status_code == 200
    body: dict[str, Any] = orjson.loads(response.content)
    return body


async def chunks(handler: FakeChat, **fields: Any) -> list[dict[str, Any]]:
    response = await post(handler, {**STREAM, **fields})
    *events, done, end = response.content.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    return [orjson.loads(event[6:]) for event in events]


async def test_a_completion_has_openais_exact_shape() -> None:
    handler = FakeChat(cached_tokens=5)
    body = await whole(handler)
    assert re.fullmatch(r"cmpl-[0-9a-f]{24}", body["id"])
    assert body == {
        "id": body["id"],
        "object": "text_completion",
        "created": body["created"],
        "model": "gpt-4o-mini",
        "system_fingerprint": body["system_fingerprint"],
        "choices": [{"index": 0, "text": 'Hello "wörld"\n', "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    Completion.model_validate(body, strict=True)
    [(request, caller)] = handler.calls
    assert isinstance(request, CompletionRequest) and request.prompts == ["Once"]
    assert caller.priority is Priority.INTERACTIVE
    assert (handler.open_generations, handler.closed_generations) == (0, 1)


async def test_a_stream_is_one_chunk_a_piece_the_last_with_the_reason() -> None:
    events = await chunks(FakeChat(), stream_options={"include_usage": True})
    assert [event["choices"] for event in events] == [
        [{"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": 'lo "wörld"\n', "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
        [],
    ]
    assert [event["usage"] and event["usage"]["total_tokens"] for event in events] == [None, None, None, 13]
    assert len({(event["id"], event["object"], event["created"]) for event in events}) == 1
    assert "usage" not in (await chunks(FakeChat()))[0]


async def test_choices_are_numbered_prompt_by_prompt() -> None:
    body = await whole(FakeChat(TWO), prompt=["Once", "Twice"])
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "Yes! Sure"), (1, "No")]
    assert body["usage"]["completion_tokens"] == 6


async def test_log_probabilities_come_in_the_older_shape() -> None:
    body = await whole(FakeChat(LIKELY), logprobs=2)
    Completion.model_validate(body, strict=True)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["Hi", " ü", "!"],
        "token_logprobs": [-0.5, -2.0, -9999.0],
        "top_logprobs": [
            {"Hi": -0.5, "Yo": -1.5},
            {" ü": -2.0, " you": -0.25},
            {"!": -9999.0, ".": -0.125, "?": -9999.0},
        ],
        "text_offset": [0, 2, 4],
    }


async def test_zero_asks_for_the_chosen_tokens_only() -> None:
    logprobs = (await whole(FakeChat(LIKELY), logprobs=0))["choices"][0]["logprobs"]
    assert (logprobs["token_logprobs"], logprobs["top_logprobs"]) == ([-0.5, -2.0, -9999.0], None)


async def test_offsets_go_on_through_the_stream_of_each_choice() -> None:
    other = [Delta(d.text, d.completion_tokens, d.finish_reason, 1, logprobs=d.logprobs) for d in LIKELY]
    pairs = [delta for pair in zip(LIKELY, other, strict=True) for delta in pair]
    events = await chunks(FakeChat(pairs), logprobs=1, n=2)
    offsets = [(event["choices"][0]["index"], event["choices"][0]["logprobs"]["text_offset"]) for event in events]
    assert offsets == [(0, [0]), (1, [0]), (0, [2]), (1, [2]), (0, [4]), (1, [4])]


async def test_the_first_token_of_an_echo_has_no_log_probability() -> None:
    deltas = [
        Delta("Once", 0, logprobs=(token("On", None), token("ce", -1.0, ("ce", -1.0), ("to", -3.0)))),
        Delta(" upon", 1, "length", logprobs=(token(" upon", -0.5, (" a", -0.25)),)),
    ]
    [choice] = (await whole(FakeChat(deltas), echo=True, logprobs=1, max_tokens=1))["choices"]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"] == {
        "tokens": ["On", "ce", " upon"],
        "token_logprobs": [None, -1.0, -0.5],
        "top_logprobs": [None, {"ce": -1.0, "to": -3.0}, {" upon": -0.5, " a": -0.25}],
        "text_offset": [0, 2, 4],
    }


async def test_tokens_that_look_alike_are_one_entry_the_likelier() -> None:
    deltas = [Delta("\ufffd", 1, "stop", logprobs=(token("\ufffd", -4.0, ("\ufffd", -0.5), ("\ufffd", -0.75)),))]
    [choice] = (await whole(FakeChat(deltas), logprobs=2))["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -0.5}]


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_failure_before_the_first_token_has_its_own_status(body: dict[str, object]) -> None:
    response = await post(FakeChat(error=EngineFailed()), body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert (await post(FakeChat(refusal=QueueFull(1)), body)).status_code == 503


async def test_a_failure_in_midstream_is_the_last_event() -> None:
    response = await post(FakeChat(error=EngineFailed(), wait_at=1), STREAM)
    events = response.content.split(b"\n\n")
    assert orjson.loads(events[1][6:])["error"]["code"] == "engine_failed"
    assert events[2:] == [b""]


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_client_that_leaves_ends_the_generation(body: dict[str, object]) -> None:
    handler = FakeChat()
    handler.gate.clear()
    connection = Connection("/v1/completions", body)
    await connection.leave_when(handler.started, app(handler))
    assert (handler.open_generations, handler.closed_generations) == (0, 1)


async def test_ignored_parameters_are_listed_in_the_reply() -> None:
    response = await post(FakeChat(), {**BODY, "user": "ada", "colour": "red"})
    assert response.headers["x-ignored-params"] == "colour,user"
