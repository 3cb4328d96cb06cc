"""What /v1/completions takes."""

from typing import Any

import pytest

from gateway.schemas.common import Screen
from handlers.chat.types import CompletionRequest, OutputFormat, Sampling
from tests.gateway.parsing import parse_completion, refusal_of_completion


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        ("", [""]),
        (["Once", "Twice"], ["Once", "Twice"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_form_of_prompt_becomes_a_list(prompt: object, prompts: object) -> None:
    assert parse_completion(prompt=prompt).prompts == prompts


def test_defaults_are_openais() -> None:
    assert parse_completion() == CompletionRequest(prompts=["Once"], max_tokens=16, sampling=Sampling())
    neutral: dict[str, Any] = {
        "best_of": 1,
        "echo": False,
        "suffix": "",
        "logprobs": None,
        "max_tokens": None,
        "n": None,
    }
    assert parse_completion(**neutral) == parse_completion()


def test_everything_reaches_the_handler() -> None:
    request = parse_completion(
        max_tokens=0,
        echo=True,
        n=2,
        best_of=3,
        suffix="the end",
        logprobs=0,
        stop="\n",
        top_k=5,
        guided_regex="a",
    )
    assert (request.max_tokens, request.echo, request.n, request.best_of) == (0, True, 2, 3)
    assert (request.suffix, request.stop) == ("the end", ("\n",))
    assert (request.sampling.top_logprobs, request.sampling.top_k) == (0, 5)
    assert request.output_format == OutputFormat("regex", "a", "guided_regex")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1], [-1]]}, "prompt[1]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": ["a"] * 65, "best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"stream_options": {}}, "stream_options"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_a_completion_names_the_parameter_that_is_wrong(fields: dict[str, Any], param: str) -> None:
    assert refusal_of_completion(**fields).param == param


def test_the_best_of_as_many_as_are_returned_may_be_streamed() -> None:
    assert parse_completion(n=2, best_of=2, stream=True).best_of is None


def test_hints_are_ignored_and_unknown_names_listed() -> None:
    screen = Screen()
    parse_completion(screen, user="ada", messages=[])
    assert screen.ignored == {"user", "messages"}
