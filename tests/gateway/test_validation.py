"""pydantic's findings as a caller reads them."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gateway.validation import from_validation_error
from handlers.errors import InvalidRequest


class Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "user"]
    content: str


class Params(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    messages: list[Message]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    stop: Annotated[list[str], Field(max_length=4)] = []
    seed: int = 0
    voice: str = "alloy"

    @field_validator("voice")
    @classmethod
    def _known(cls, voice: str) -> str:
        if voice != "alloy":
            raise ValueError("there is only 'alloy'.")
        return voice


def kind(value: object) -> str:
    return type(value).__name__


def mistake(**fields: Any) -> InvalidRequest:
    with pytest.raises(ValidationError) as caught:
        Params.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})
    return from_validation_error(caught.value)


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "missing_required_parameter",
            "Missing required parameter: 'messages[0].content'.",
        ),
        (
            {"temperature": "hot"},
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a number, but got a string.",
        ),
        (
            {"messages": "hi"},
            "messages",
            "invalid_type",
            "Invalid type for 'messages': expected an array, but got a string.",
        ),
        (
            {"messages": [None]},
            "messages[0]",
            "invalid_type",
            "Invalid type for 'messages[0]': expected an object, but got null.",
        ),
        (
            {"seed": True},
            "seed",
            "invalid_type",
            "Invalid type for 'seed': expected an integer, but got a boolean.",
        ),
        (
            {"temperature": 3},
            "temperature",
            "invalid_value",
            "Invalid value for 'temperature': should be less than or equal to 2, but got 3.",
        ),
        (
            {"temperature": float("nan")},
            "temperature",
            "invalid_value",
            "Invalid value for 'temperature': should be a finite number, but got nan.",
        ),
        (
            {"messages": [{"role": "robot", "content": ""}]},
            "messages[0].role",
            "invalid_value",
            "Invalid value for 'messages[0].role': should be 'system' or 'user', but got 'robot'.",
        ),
        (
            {"stop": ["a"] * 5},
            "stop",
            "invalid_value",
            "Invalid value for 'stop': list should have at most 4 items, not 5.",
        ),
        (
            {"voice": "nova"},
            "voice",
            "invalid_value",
            "Invalid value for 'voice': there is only 'alloy', but got 'nova'.",
        ),
        ({"tempreature": 1}, "tempreature", "unknown_parameter", "Unknown parameter: 'tempreature'. Leave it out."),
    ],
)
def test_a_mistake_names_the_parameter_what_it_must_be_and_what_came(
    fields: dict[str, Any], param: str, code: str, message: str
) -> None:
    error = mistake(**fields)
    assert (error.param, error.code, error.message) == (param, code, message)


def test_a_form_field_is_told_by_what_it_says_not_by_its_type() -> None:
    class Form(BaseModel):
        speed: float

    with pytest.raises(ValidationError) as caught:
        Form.model_validate_strings({"speed": "fast"})
    message = "Invalid value for 'speed': expected a number, but got 'fast'."
    assert from_validation_error(caught.value).message == message


def test_a_body_that_is_wrong_as_a_whole_has_no_param() -> None:
    with pytest.raises(ValidationError) as caught:
        Params.model_validate([])
    error = from_validation_error(caught.value)
    assert error.param is None
    assert error.message == "Invalid type for the body: expected an object, but got an array."


@pytest.mark.parametrize("value", ["x" * 1_000_000, "line\nbreak", "\x00", b"\xff" * 100, 10**5_000], ids=kind)
def test_long_and_binary_values_are_not_echoed(value: object) -> None:
    error = mistake(messages=[{"role": value, "content": ""}])
    assert error.message == "Invalid value for 'messages[0].role': should be 'system' or 'user'."


def test_a_huge_unknown_key_is_cut() -> None:
    error = mistake(**{"k" * 1_000_000: 1})
    assert error.param is not None and len(error.param) == 100
    assert len(error.message) <= 200
