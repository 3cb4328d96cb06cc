"""pydantic's findings in a caller's words: which parameter, what it must be, and what came."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from handlers.errors import InvalidRequest

_MAX_MESSAGE = 200  # characters
_MAX_PARAM = 100
_MAX_ECHO = 40

_JSON_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}
_TEXT_FORMS = {"int_parsing": "an integer", "float_parsing": "a number", "bool_parsing": "true or false"}


def from_validation_error(exc: ValidationError) -> InvalidRequest:
    """The first mistake, as the error to raise. Of the caller's values, only short and plain ones are echoed."""
    error = exc.errors(include_url=False)[0]
    param = _param(error["loc"])
    message, code = _finding(error, f"'{param}'" if param else "the body")
    return InvalidRequest(_cut(message, _MAX_MESSAGE), param, code)


def _param(loc: tuple[int | str, ...]) -> str | None:
    """`messages[0].content`; None for the body as a whole."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)
    return _cut(path.removeprefix("."), _MAX_PARAM) or None


def _finding(error: ErrorDetails, name: str) -> tuple[str, str]:
    """A sentence about the parameter, and OpenAI's code for this kind of mistake."""
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return f"Missing required parameter: {name}.", "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"Unknown parameter: {name}. Leave it out.", "unknown_parameter"
    if kind in _JSON_TYPES:
        return f"Invalid type for {name}: expected {_JSON_TYPES[kind]}, but got {_json_type(value)}.", "invalid_type"
    return f"Invalid value for {name}: {_rule(error)}{_echo(value)}.", "invalid_value"


def _rule(error: ErrorDetails) -> str:
    if error["type"] in _TEXT_FORMS:
        return f"expected {_TEXT_FORMS[error['type']]}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]).rstrip(".")
    text = error["msg"].removeprefix("Input ").replace(" after validation", "")
    return text[:1].lower() + text[1:]


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case dict():
            return "an object"
        case list():
            return "an array"
    return "something else"


def _echo(value: object) -> str:
    """What came, if it says more than the space it takes."""
    match value:
        # To write a huge integer takes time that grows with the square of its length.
        case bool() | float():
            return f", but got {value}"
        case int() if value.bit_length() <= 64:
            return f", but got {value}"
        case str() if len(value) <= _MAX_ECHO and value.isprintable():
            return f", but got '{value}'"
    return ""


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
