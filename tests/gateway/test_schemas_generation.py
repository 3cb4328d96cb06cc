"""Sampling, formats, templates and priorities of a chat; what completions share with it is tested here once."""

from typing import Any

import pytest

from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.common import Screen
from handlers.chat.types import OutputFormat
from tests.gateway.parsing import HELLO, parse_chat, refusal_of_chat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **fields}}


def test_everything_about_sampling_reaches_the_handler() -> None:
    request = parse_chat(
        frequency_penalty=-2,
        presence_penalty=0.5,
        logit_bias={"0": -100, "50256": 1.5},
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.2,
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=[7, 8],
        logprobs=True,
        top_logprobs=5,
        n=3,
    )
    sampling = request.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (-2, 0.5)
    assert sampling.logit_bias == {0: -100, 50256: 1.5}
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.1, 1.2)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (3, True, (7, 8))
    assert (sampling.top_logprobs, request.n) == (5, 3)


def test_off_is_off_however_it_is_said() -> None:
    assert parse_chat(
        top_k=-1, top_logprobs=0, logprobs=False, logit_bias={}, n=1, response_format={"type": "text"}
    ) == (parse_chat())
    assert parse_chat(logprobs=True).sampling.top_logprobs == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1.5": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"01": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 10: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"logit_bias": {"5": True}}, "logit_bias[5]"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"priority": 1.5}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "a" * 257}, "cache_salt"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"__class__": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "b" * 16_384}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"a{i}": i for i in range(65)}}, "chat_template_kwargs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_a_chat_names_the_parameter_that_is_wrong(fields: dict[str, Any], param: str) -> None:
    assert refusal_of_chat(**fields).param == param


def test_messages_of_errors_speak_of_no_extensions() -> None:
    assert refusal_of_chat(typical_p=0.5).message.startswith("Unsupported parameter: 'typical_p'. Answers are sampled")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, OutputFormat("json_object")),
        ({"response_format": json_schema(strict=True)}, OutputFormat("json_schema", SCHEMA)),
        ({"response_format": json_schema(strict=None)}, OutputFormat("json_schema", SCHEMA)),
        ({"guided_json": SCHEMA}, OutputFormat("json_schema", SCHEMA, "guided_json")),
        ({"guided_json": '{"type": "object"}'}, OutputFormat("json_schema", {"type": "object"}, "guided_json")),
        ({"guided_regex": "a+"}, OutputFormat("regex", "a+", "guided_regex")),
        ({"guided_choice": ["a", "b"]}, OutputFormat("choice", ["a", "b"], "guided_choice")),
        ({"guided_grammar": "start: /a/"}, OutputFormat("grammar", "start: /a/", "guided_grammar")),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": None}},
            OutputFormat("json_schema", SCHEMA, "structured_outputs.json"),
        ),
        ({"structured_outputs": {"choice": ["a"]}}, OutputFormat("choice", ["a"], "structured_outputs.choice")),
        (
            {"structured_outputs": {"json_object": True}},
            OutputFormat("json_object", param="structured_outputs.json_object"),
        ),
        ({"structured_outputs": {}, "response_format": {"type": "json_object"}}, OutputFormat("json_object")),
    ],
)
def test_every_way_to_ask_for_a_format_is_one_to_the_handler(fields: dict[str, Any], expected: object) -> None:
    assert parse_chat(**fields).output_format == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": json_schema(name=None)}, "response_format.json_schema.name"),
        ({"response_format": json_schema(name="a" * 65)}, "response_format.json_schema.name"),
        ({"response_format": json_schema(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": json_schema(schema=None)}, "response_format.json_schema.schema"),
        ({"response_format": json_schema(schema=True)}, "response_format.json_schema.schema"),
        ({"response_format": json_schema(schema={"a": "b" * 131_072})}, "response_format.json_schema.schema"),
        ({"response_format": json_schema(strict="yes")}, "response_format.json_schema.strict"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": "{" + " " * 131_072 + "}"}, "guided_json"),
        ({"guided_json": '{"a":' * 65 + "1" + "}" * 65}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"guided_grammar": 5}, "guided_grammar"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_a_format_that_cannot_be_had_is_refused_by_path(fields: dict[str, Any], param: str) -> None:
    assert refusal_of_chat(**fields).param == param


def test_the_description_of_a_format_is_reported_as_ignored() -> None:
    screen = Screen()
    parse_chat(screen, response_format=json_schema(description="Numbers."))
    assert screen.ignored == {"response_format.json_schema.description"}


def test_what_the_template_is_told() -> None:
    assert parse_chat().template_kwargs == {}
    assert parse_chat(reasoning_effort="none").template_kwargs == {"enable_thinking": False}
    assert parse_chat(reasoning_effort="low").template_kwargs == {"enable_thinking": True}
    request = parse_chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False, "date": "today"})
    assert request.template_kwargs == {"enable_thinking": False, "date": "today"}


def test_a_turn_is_opened_unless_the_last_one_goes_on() -> None:
    cases: list[tuple[dict[str, Any], tuple[bool, bool]]] = [
        ({}, (True, False)),
        ({"add_generation_prompt": False}, (False, False)),
        ({"continue_final_message": True}, (False, True)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (False, True)),
    ]
    for fields, expected in cases:
        request = parse_chat(messages=[*HELLO, {"role": "assistant", "content": "Hi"}], **fields)
        assert (request.add_generation_prompt, request.continue_final_message) == expected


@pytest.mark.parametrize(
    ("fields", "background"),
    [
        (b'"service_tier": "flex"', True),
        (b'"priority": 1', True),
        (b'"priority": -1', False),
        (b'"priority": 0, "service_tier": "priority"', False),
    ],
)
def test_who_may_wait_runs_in_the_background(fields: bytes, background: bool) -> None:
    params = ChatCompletionParams.parse(
        b'{"model": "m", "messages": [{"role": "user", "content": "a"}], %b}' % fields, Screen()
    )
    assert params.background is background
    assert params.served_tier == ("flex" if background else "default")
