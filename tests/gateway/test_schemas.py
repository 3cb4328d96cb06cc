"""The tables of verdicts against the SDK, the docs and the wire types."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import orjson
import pytest
from openai.types import completion_create_params as completions_of_the_sdk
from openai.types.audio.speech_create_params import SpeechCreateParams
from openai.types.audio.transcription_create_params import (
    ChunkingStrategyVadConfig,
    TranscriptionCreateParamsNonStreaming,
    TranscriptionCreateParamsStreaming,
)
from openai.types.audio.translation_create_params import TranslationCreateParams
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartRefusalParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.embedding_create_params import EmbeddingCreateParams
from pydantic import BaseModel

from gateway.schemas import parameters
from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.common import Screen, header_safe, loads, read_object
from gateway.schemas.completions import CompletionParams
from gateway.schemas.embeddings import EmbeddingParams
from gateway.schemas.generation import StreamOptions
from gateway.schemas.messages import Message
from gateway.schemas.output_format import StructuredOutputs
from gateway.schemas.rerank import RerankParams
from gateway.schemas.speech import SpeechParams
from gateway.schemas.transcription import ServerVad, TranscriptionParams, TranslationParams
from gateway.schemas.verdicts import Parameters, Verdict
from handlers.embeddings.types import EmbeddingRequest, PromptChoice
from handlers.errors import InvalidRequest
from tests.gateway.parsing import CHAT, HELLO, parse_chat

API_DOCS = Path(__file__).parents[2] / "docs" / "api.md"
TABLES = (
    "CHAT",
    "MESSAGE",
    "CONTENT_PART",
    "IMAGE_URL",
    "STRUCTURED_OUTPUTS",
    "STREAM_OPTIONS",
    "COMPLETIONS",
    "EMBEDDINGS",
    "RERANK",
    "TRANSCRIPTION",
    "SERVER_VAD",
    "TRANSLATION",
    "SPEECH",
)

EMBED = {"model": "m", "input": "Hello"}
SPEAK = {"model": "m", "input": "Hello", "voice": "alloy"}


def as_markdown(table: Parameters) -> str:
    rows = ["| parameter | verdict | |", "|---|---|---|"]
    for name, parameter in table.items():
        allowed = " or ".join(f"`{orjson.dumps(value).decode()}`" for value in parameter.allowed)
        verdict = f"{parameter.verdict}, except {allowed}" if allowed else str(parameter.verdict)
        origin = "Extension. " if parameter.extension else ""
        rows.append(f"| `{name}` | {verdict} | {origin}{parameter.note} |")
    return "".join(f"{row}\n" for row in rows)


@pytest.mark.parametrize("name", TABLES)
def test_docs_show_the_table_of_verdicts(name: str) -> None:
    expected = f"<!-- {name} -->\n{as_markdown(getattr(parameters, name))}\n"
    assert expected in API_DOCS.read_text(), f"docs/api.md should have:\n{expected}"


@pytest.mark.parametrize(
    ("table", "typed_dicts"),
    [
        (parameters.CHAT, [CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming]),
        (
            parameters.MESSAGE,
            [
                ChatCompletionDeveloperMessageParam,
                ChatCompletionSystemMessageParam,
                ChatCompletionUserMessageParam,
                ChatCompletionAssistantMessageParam,
                ChatCompletionToolMessageParam,
                ChatCompletionFunctionMessageParam,
            ],
        ),
        (parameters.CONTENT_PART, [ChatCompletionContentPartTextParam, ChatCompletionContentPartRefusalParam]),
        (parameters.STREAM_OPTIONS, [ChatCompletionStreamOptionsParam]),
        (
            parameters.COMPLETIONS,
            [
                completions_of_the_sdk.CompletionCreateParamsNonStreaming,
                completions_of_the_sdk.CompletionCreateParamsStreaming,
            ],
        ),
        (parameters.EMBEDDINGS, [EmbeddingCreateParams]),
        (parameters.TRANSCRIPTION, [TranscriptionCreateParamsNonStreaming, TranscriptionCreateParamsStreaming]),
        (parameters.SERVER_VAD, [ChunkingStrategyVadConfig]),
        (parameters.TRANSLATION, [TranslationCreateParams]),
        (parameters.SPEECH, [SpeechCreateParams]),
    ],
)
def test_every_parameter_of_the_sdk_has_a_verdict(table: Parameters, typed_dicts: Iterable[type]) -> None:
    known_to_sdk = {name for typed_dict in typed_dicts for name in get_type_hints(typed_dict)}
    assert known_to_sdk - table.keys() == set()


@pytest.mark.parametrize(
    ("table", "model", "besides"),
    [
        (parameters.CHAT, ChatCompletionParams, set()),
        (parameters.MESSAGE, Message, {"refusal", "reasoning"}),
        (parameters.STRUCTURED_OUTPUTS, StructuredOutputs, set()),
        (parameters.STREAM_OPTIONS, StreamOptions, set()),
        (parameters.COMPLETIONS, CompletionParams, set()),
        (parameters.EMBEDDINGS, EmbeddingParams, set()),
        (parameters.RERANK, RerankParams, {"texts"}),
        (parameters.TRANSCRIPTION, TranscriptionParams, {"file"}),
        (parameters.SERVER_VAD, ServerVad, set()),
        (parameters.TRANSLATION, TranslationParams, {"file"}),
        (parameters.SPEECH, SpeechParams, set()),
    ],
)
def test_supported_parameters_are_the_fields_of_the_wire_type(
    table: Parameters, model: type[BaseModel], besides: set[str]
) -> None:
    supported = {name for name, parameter in table.items() if parameter.verdict is Verdict.SUPPORTED}
    assert supported == {field.alias or name for name, field in model.model_fields.items()} | besides


def parse_embeddings(**fields: Any) -> EmbeddingRequest:
    return EmbeddingParams.parse(orjson.dumps({**EMBED, **fields}), Screen()).to_request()


def parse_speech(**fields: Any) -> SpeechParams:
    return SpeechParams.parse(orjson.dumps({**SPEAK, **fields}), Screen())


def refused(table: Parameters) -> list[str]:
    return [name for name, parameter in table.items() if parameter.verdict is Verdict.REFUSED]


@pytest.mark.parametrize("name", refused(parameters.CHAT))
def test_what_would_change_the_answer_is_refused_by_name(name: str) -> None:
    fields: dict[str, Any] = {name: {"anything": "else"}}
    with pytest.raises(InvalidRequest, match=f"'{name}'.*Leave it out") as caught:
        parse_chat(**fields)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", refused(parameters.CHAT))
def test_a_neutral_value_of_a_refused_parameter_is_taken_and_not_reported(name: str) -> None:
    screen = Screen()
    for neutral in (None, *parameters.CHAT[name].allowed):
        parse_chat(screen, **{name: neutral})
    assert screen.headers() == {}


def test_true_is_not_the_neutral_one() -> None:
    with pytest.raises(InvalidRequest, match="'best_of'"):
        parse_chat(best_of=True)


def test_null_is_absent_everywhere() -> None:
    nulls = dict.fromkeys(parameters.CHAT.keys() - CHAT.keys())
    assert parse_chat(**nulls) == parse_chat()
    options: dict[str, None] = dict.fromkeys(parameters.STREAM_OPTIONS)
    assert parse_chat(stream=True, stream_options=options) == parse_chat()
    message = {**HELLO[0], "name": None, "tool_calls": None, "audio": None}
    assert parse_chat(messages=[message]) == parse_chat()


def test_ignored_and_unknown_names_are_listed_once_in_order() -> None:
    screen = Screen()
    message = {
        "role": "user",
        "annotations": [],
        "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}],
    }
    parse_chat(
        screen,
        messages=[message, message],
        user="ada",
        zebra=1,
        stream=True,
        stream_options={"include_obfuscation": True, "colour": "red"},
    )
    assert screen.headers()["x-ignored-params"].split(",") == [
        "messages[].annotations",
        "messages[].content[].prompt_cache_breakpoint",
        "stream_options.colour",
        "stream_options.include_obfuscation",
        "user",
        "zebra",
    ]


def test_names_from_the_client_are_made_fit_for_a_header() -> None:
    screen = Screen()
    parse_chat(screen, **{"x\r\nset-cookie: a=b": 1})
    assert screen.headers() == {"x-ignored-params": "x??set-cookie??a?b"}
    assert header_safe("ü,🙂" + "a" * 100) == "???" + "a" * 61


def test_the_list_of_ignored_names_is_bounded() -> None:
    screen = Screen()
    parse_chat(screen, **{f"{i}{'k' * 60}": 1 for i in range(200)})
    header = screen.headers()["x-ignored-params"]
    assert len(header) == 1024
    assert header.endswith(",...")
    assert len(screen.ignored) == 64


def test_strict_mode_refuses_unknown_names_and_still_ignores_known_ones() -> None:
    parse_chat(Screen(strict=True), user="ada")
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(Screen(strict=True), zebra=1)
    assert (caught.value.param, caught.value.code) == ("zebra", "unknown_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10.0}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_completion_tokens": "10"}, "max_completion_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a" * 1025]}, "stop[0]"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"service_tier": 1}, "service_tier"),
        ({str(i): i for i in range(257)}, None),
    ],
)
def test_chat_refuses_what_is_malformed_and_names_it(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        ({"role": "user", "content": "Hello"}, "messages"),
        (["Hello"], "messages[0]"),
        ([None], "messages[0]"),
        ([{"content": "Hello"}], "messages[0].role"),
        ([{"role": "wizard", "content": "Hello"}], "messages[0].role"),
        ([{"role": ["user"], "content": "Hello"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "video"}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [{"type": [], "text": "a"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url.url",
        ),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "refusal": 5}], "messages[0].content"),
        (HELLO * 2049, "messages"),
        ([None] * 100_000, "messages"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 4097}], "messages"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_by_path(messages: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(messages=messages)
    assert caught.value.param == param


def test_messages_become_role_and_text() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "this? \x00🙂"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "refusal": "I would rather not."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    assert parse_chat(messages=messages).messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is\nthis? \x00🙂"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "I would rather not."},
        {"role": "assistant", "content": "No."},
    ]


def test_a_refusal_that_is_not_used_is_reported() -> None:
    screen = Screen()
    parse_chat(screen, messages=[{"role": "assistant", "content": "Yes.", "refusal": "No."}])
    assert screen.ignored == {"messages[].refusal"}


def test_sampling_parameters_reach_the_handler() -> None:
    request = parse_chat(
        max_tokens=5, max_completion_tokens=7, temperature=0, top_p=0.5, seed=-(2**63), stop=["\n\n", "END"]
    )
    assert request.max_tokens == 7
    assert request.sampling.temperature == 0
    assert request.sampling.top_p == 0.5
    assert request.sampling.seed == -(2**63)
    assert request.stop == ("\n\n", "END")


def test_defaults_are_openais() -> None:
    request = parse_chat(stop="END", max_tokens=5)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.seed) == (1, 1, None)
    assert request.stop == ("END",)
    assert request.max_tokens == 5
    assert parse_chat().max_tokens is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        read_object(body)


def test_of_a_repeated_key_the_last_counts() -> None:
    assert read_object(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"truncate": False}, None),
        ({"truncate": True}, -1),
        ({"truncate_prompt_tokens": -1}, -1),
        ({"truncate_prompt_tokens": 7}, 7),
        ({"truncate": True, "truncate_prompt_tokens": 7}, 7),
    ],
)
def test_embeddings_are_cut_as_either_server_has_it(fields: dict[str, Any], expected: int | None) -> None:
    assert parse_embeddings(**fields).cut_to == expected


@pytest.mark.parametrize("param", ["prompt_name", "input_type", "task"])
def test_one_prompt_is_chosen_under_any_of_its_names(param: str) -> None:
    assert parse_embeddings(**{param: "query"}).prompt == PromptChoice(param, "query")


def test_so_many_inputs_are_taken_as_openai_takes() -> None:
    assert len(parse_embeddings(input=["a"] * 2048).inputs) == 2048


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("Hello", ["Hello"]),
        (["Hello", "world"], ["Hello", "world"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_form_of_input_becomes_a_list_of_items(value: object, inputs: object) -> None:
    assert parse_embeddings(input=value).inputs == inputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"input": 5}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [None]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [1, True]}, "input"),
        ({"input": [1, -1]}, "input"),
        ({"input": [2**40]}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], [1, -1]]}, "input[1]"),
        ({"input": [[1], [2.0]]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1]] * 100_000}, "input"),
        ({"model": None}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"truncate": "END"}, "truncate"),
        ({"truncate": False, "truncate_prompt_tokens": 5}, "truncate"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
        ({"truncation_direction": "left"}, "truncation_direction"),
        ({"input_type": ""}, "input_type"),
        ({"input_type": 1}, "input_type"),
        ({"prompt_name": "query", "task": "query"}, "task"),
        ({"normalize": 1}, "normalize"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"output_dimension": 256}, "output_dimension"),
        ({"embedding_types": ["int8"]}, "embedding_types"),
    ],
)
def test_embeddings_refuses_what_is_malformed_and_names_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_embeddings(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"voice": None}, "voice"),
        ({"voice": ""}, "voice"),
        ({"voice": {"name": "alloy"}}, "voice"),
        ({"voice": {"id": 5}}, "voice"),
        ({"response_format": "midi"}, "response_format"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 4.1}, "speed"),
        ({"speed": "1"}, "speed"),
        ({"stream_format": "events"}, "stream_format"),
    ],
)
def test_speech_refuses_what_is_malformed_and_names_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_speech(**fields)
    assert caught.value.param == param


def test_a_voice_may_be_an_object_with_an_id() -> None:
    params = parse_speech(voice={"id": "onyx"}, stream_format="audio", response_format="wav", speed=2)
    request = params.to_request()
    assert (request.voice, request.format, request.speed, request.text) == ("onyx", "wav", 2, "Hello")


def test_the_collector_rests_while_a_body_is_read_and_only_then() -> None:
    collections = gc.get_stats()[0]["collections"]

    assert len(loads(b"[" + b"[]," * 50_000 + b"[]]")) == 50_001
    assert gc.get_stats()[0]["collections"] <= collections + 1
    assert gc.isenabled()
    with pytest.raises(orjson.JSONDecodeError):
        loads(b"[")
    assert gc.isenabled()
