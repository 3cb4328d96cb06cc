"""Streams byte for byte as in golden/, from a real server, and what OpenAI's SDK makes of each.

tests/clients/test_golden_node.py feeds the same files to the SDK for Node. Whoever changes a stream on purpose writes
the new bytes into its file, and reads the difference.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from batching.errors import EngineFailed
from gateway.schemas import reply
from handlers.chat.types import Delta, OutputFormat
from tests.clients.live import fake_server
from tests.gateway.answers import CALLS, LIKELY, ONE_CALL, THOUGHTS, TWO
from tests.gateway.fakes import HELLO, FakeChat, FakeSpeech

GOLDEN = Path(__file__).parent / "golden"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {"name": "get_weather", "strict": True, "parameters": {"type": "object"}}
TIME: dict[str, Any] = {"name": "get_time", "strict": True, "parameters": {"type": "object"}}
TOOLS: list[Any] = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]


def mid_stream_failure() -> FakeChat:
    return FakeChat(error=EngineFailed(), wait_at=1)


@dataclass(frozen=True)
class Stream:
    handler: Callable[[], FakeChat]
    path: str = "chat/completions"
    fields: dict[str, Any] = field(default_factory=dict)


USAGE: Any = {"include_usage": True}
WITH_USAGE = {"stream_options": USAGE}
STREAMS = {
    "text": Stream(FakeChat),
    "usage": Stream(lambda: FakeChat(cached_tokens=8), fields=WITH_USAGE),
    "tool_calls": Stream(lambda: FakeChat(CALLS), fields={"tools": TOOLS, **WITH_USAGE}),
    "function_call": Stream(lambda: FakeChat(ONE_CALL), fields={"functions": [WEATHER]}),
    "two_answers": Stream(lambda: FakeChat(TWO), fields={"n": 2, **WITH_USAGE}),
    "logprobs": Stream(lambda: FakeChat(LIKELY), fields={"logprobs": True, "top_logprobs": 2}),
    "reasoning": Stream(lambda: FakeChat(THOUGHTS, reasoning_tokens=2), fields=WITH_USAGE),
    "error": Stream(mid_stream_failure),
    "completion": Stream(lambda: FakeChat(TWO), "completions", {"prompt": ["Yes?", "No?"], **WITH_USAGE}),
    "completion_logprobs": Stream(lambda: FakeChat(LIKELY), "completions", {"prompt": "Hi", "logprobs": 2}),
    "completion_error": Stream(mid_stream_failure, "completions", {"prompt": "Hi"}),
}


@pytest.fixture(autouse=True)
def one_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "token_hex", lambda length: "0" * 2 * length)
    monkeypatch.setattr(reply, "time", lambda: 1700000000.5)
    monkeypatch.setattr(reply, "fingerprint", lambda spec: "fp_0123456789ab")


@contextmanager
def client_of(handler: FakeChat) -> Iterator[OpenAI]:
    with fake_server([handler]) as url, OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


def served(name: str) -> AbstractContextManager[OpenAI]:
    return client_of(STREAMS[name].handler())


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_golden_one(name: str) -> None:
    stream = STREAMS[name]
    body = {"model": "gpt-4o", "messages": MESSAGES, "stream": True, **stream.fields}
    with fake_server([stream.handler()]) as url:
        response = httpx2.post(f"{url}/{stream.path}", json=body)
    assert response.content == (GOLDEN / f"{name}.txt").read_bytes()


def test_every_golden_stream_is_in_use() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*STREAMS, "speech"}


def test_speech_events_are_the_golden_ones() -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": "Hello", "stream_format": "sse"}
    with fake_server([FakeSpeech()]) as url:
        response = httpx2.post(f"{url}/audio/speech", json=body)
    assert response.content == (GOLDEN / "speech.txt").read_bytes()


def test_audio_that_is_cut_is_an_error_for_the_reader() -> None:
    fields: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Hello"}
    with fake_server([FakeSpeech(failure=EngineFailed(), fail_at=1)]) as url:
        with OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
            with client.audio.speech.with_streaming_response.create(**fields) as speech:
                with pytest.raises(httpx2.RemoteProtocolError):
                    list(speech.iter_bytes())
            with pytest.raises(openai.APIConnectionError):
                client.audio.speech.create(**fields)


def test_text_and_usage_are_read() -> None:
    with served("usage") as client:
        chunks = list(
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True, stream_options=USAGE)
        )
        with client.chat.completions.stream(model="gpt-4o", messages=MESSAGES, stream_options=USAGE) as stream:
            final = stream.get_final_completion()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == final.choices[0].message.content == 'Hello "wörld"\n'
    usage = chunks[-1].usage
    assert usage == final.usage
    assert usage and usage.prompt_tokens_details and usage.completion_tokens_details
    assert (usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens) == (8, 0)


def test_calls_in_pieces_are_put_together_by_the_helper() -> None:
    with (
        served("tool_calls") as client,
        client.chat.completions.stream(model="gpt-4o", messages=MESSAGES, tools=TOOLS) as stream,
    ):
        events = [event.type for event in stream]
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()] == [
        ("call_a", "get_weather", '{"city":"Zürich"}'),
        ("call_b", "get_time", '{"zone":"CET"}'),
    ]
    assert events.count("tool_calls.function.arguments.delta") >= 3
    assert events.count("tool_calls.function.arguments.done") == 2


def test_whole_calls_are_read() -> None:
    with served("tool_calls") as client:
        [choice] = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, tools=TOOLS).choices
    calls = choice.message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ["get_weather", "get_time"]


def test_a_call_in_the_older_form_is_read() -> None:
    functions: Any = [WEATHER]
    with served("function_call") as client:
        [choice] = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, functions=functions).choices
        chunks = list(
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES, functions=functions, stream=True)
        )
    whole = choice.message.function_call
    assert whole and (whole.name, whole.arguments) == ("get_weather", '{"city":"Zürich"}')
    pieces = [call for chunk in chunks if (call := chunk.choices[0].delta.function_call)]
    assert "".join(piece.arguments or "" for piece in pieces) == whole.arguments
    assert (choice.finish_reason, chunks[-1].choices[0].finish_reason) == ("function_call", "function_call")


def test_interleaved_answers_are_told_apart() -> None:
    with (
        served("two_answers") as client,
        client.chat.completions.stream(model="gpt-4o", messages=MESSAGES, n=2) as stream,
    ):
        choices = stream.get_final_completion().choices
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in choices] == [
        (0, "Yes! Sure", "stop"),
        (1, "No", "stop"),
    ]


def test_log_probabilities_are_gathered() -> None:
    with served("logprobs") as client:
        whole = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, logprobs=True, top_logprobs=2)
        with client.chat.completions.stream(model="gpt-4o", messages=MESSAGES, logprobs=True, top_logprobs=2) as stream:
            streamed = stream.get_final_completion()
    logprobs = whole.choices[0].logprobs
    assert logprobs and [entry.logprob for entry in logprobs.content or ()] == [-0.5, -2.0, -9999.0]
    assert streamed.choices[0].logprobs == logprobs


def test_thoughts_are_read_as_an_extra_field() -> None:
    with served("reasoning") as client:
        message = client.chat.completions.create(model="gpt-4o", messages=MESSAGES).choices[0].message
        chunks = list(client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
    assert getattr(message, "reasoning_content", None) == "Hm. 4?"
    assert "".join(getattr(c.choices[0].delta, "reasoning_content", "") for c in chunks) == "Hm. 4?"


def test_an_error_in_midstream_is_raised_after_what_came_before() -> None:
    texts = []
    with served("error") as client, pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True):
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "Hel"]
    assert caught.value.code == "engine_failed"


def test_a_schema_from_pydantic_is_taken_and_its_answer_parsed() -> None:
    class City(BaseModel):
        name: str
        people: int

    handler = FakeChat([Delta('{"name":"Bern",', 5), Delta('"people":134000}', 11, "stop")])
    with client_of(handler) as client:
        parsed = client.chat.completions.parse(model="gpt-4o", messages=MESSAGES, response_format=City)
        with client.chat.completions.stream(model="gpt-4o", messages=MESSAGES, response_format=City) as stream:
            streamed = stream.get_final_completion()
    assert parsed.choices[0].message.parsed == City(name="Bern", people=134000)
    assert streamed.choices[0].message.parsed == parsed.choices[0].message.parsed
    asked = handler.calls[0][0].output_format
    assert isinstance(asked, OutputFormat)
    assert (asked.kind, asked.value["required"]) == ("json_schema", ["name", "people"])


def test_completions_are_read_whole_and_streamed() -> None:
    prompts = ["Yes?", "No?"]
    with served("completion") as client:
        whole = client.completions.create(model="gpt-4o", prompt=prompts)
        chunks = list(client.completions.create(model="gpt-4o", prompt=prompts, stream=True, stream_options=USAGE))
    assert [(choice.index, choice.text) for choice in whole.choices] == [(0, "Yes! Sure"), (1, "No")]
    for choice in whole.choices:
        pieces = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert pieces[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage == whole.usage


def test_log_probabilities_of_a_completion_are_read() -> None:
    with served("completion_logprobs") as client:
        [choice] = client.completions.create(model="gpt-4o", prompt="Hi", logprobs=2).choices
    assert choice.logprobs and choice.logprobs.tokens == ["Hi", " ü", "!"]
    assert choice.logprobs.token_logprobs == [-0.5, -2.0, -9999.0]


def test_an_error_in_midstream_of_a_completion_is_raised() -> None:
    with served("completion_error") as client, pytest.raises(openai.APIError, match="The model failed"):
        list(client.completions.create(model="gpt-4o", prompt="Hi", stream=True))


def test_what_is_refused_names_its_parameter() -> None:
    with client_of(FakeChat(HELLO)) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, n=129)
    assert caught.value.param == "n"
