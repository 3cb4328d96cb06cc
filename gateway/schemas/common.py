"""What the wire types share: reading the body once, and sorting its keys by the table of verdicts."""

import gc
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Self, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.schemas.verdicts import Parameter, Parameters, Verdict, supported
from gateway.validation import from_validation_error
from handlers.errors import InvalidRequest

MAX_KEYS = 256  # of one JSON object
MAX_IGNORED = 64  # names worth reporting
MAX_HEADER = 1024  # characters

ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class Wire(BaseModel):
    """Base of the wire types. JSON types are taken as they are: true is not 1, and "0.5" is not a number."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Raises InvalidRequest naming the first field that does not fit."""
        try:
            return cls.model_validate(fields)
        except ValidationError as exc:
            raise from_validation_error(exc) from None

    @classmethod
    def read_strings(cls, fields: Mapping[str, Any]) -> Self:
        """The same for a form, whose numbers are texts, alone or in lists and objects."""
        try:
            return cls.model_validate(fields, strict=False)
        except ValidationError as exc:
            raise from_validation_error(exc) from None


def loads(body: bytes) -> Any:
    """orjson.loads, without the garbage collector counting what is being made.

    It walks all new containers again and again: ten megabytes of `[],[]` take 5 s with it and 0.4 s without.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        if collects:
            gc.enable()


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises InvalidRequest for anything else, too deep nesting (1024) included."""
    try:
        fields = loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"The body is not valid JSON: {exc}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest('The body must be a JSON object, such as {"model": "…"}.')
    return fields


class Screen:
    """Sorts what one request carries into used, ignored and refused, and remembers the names of the ignored.

    strict: refuse names that no table knows instead of ignoring them.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.ignored: set[str] = set()

    def sort(self, fields: dict[str, Any], table: Parameters, path: str = "") -> dict[str, Any]:
        """The supported ones of `fields` that are not null: null means absent, always.

        path: where `fields` stands in the request, such as `messages[3].`.
        Raises InvalidRequest naming what is refused.
        """
        if len(fields) > MAX_KEYS:
            raise InvalidRequest(f"Too many parameters: {len(fields)}; at most {MAX_KEYS} are taken.", _parent(path))
        used = {}
        for name, value in fields.items():
            if value is None:
                continue
            parameter = table.get(name)
            if parameter is None:
                self._take_unknown(path + name)
            elif parameter.verdict is Verdict.SUPPORTED:
                used[name] = value
            elif parameter.verdict is Verdict.IGNORED:
                self.ignore(path + name)
            elif not parameter.allows(value):
                raise _refusal(path + name, parameter)
        return used

    def known(self, value: object, model: type[BaseModel], path: str) -> object:
        """`value`, an object or a list of them, with only the fields of `model` that are not null, at every level.

        What is no object stays as it is, for `model` to judge. path: where `value` stands, such as `tools`.
        """
        if isinstance(value, list):
            return [self.known(item, model, f"{path}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        used = self.sort(value, _fields(model), f"{path}.")
        for name, inner in _objects(model).items():
            if name in used:
                used[name] = self.known(used[name], inner, f"{path}.{name}")
        return used

    def ignore(self, name: str) -> None:
        """Remember one, such as `messages[3].name`; its index is of no interest."""
        if len(self.ignored) < MAX_IGNORED:
            self.ignored.add(re.sub(r"\[\d+\]", "[]", name))

    def headers(self) -> dict[str, str]:
        """`x-ignored-params` when something was ignored: names are the client's, so they are made safe and short."""
        if not self.ignored:
            return {}
        names = ",".join(sorted(map(header_safe, self.ignored)))
        return {"x-ignored-params": names if len(names) <= MAX_HEADER else f"{names[: MAX_HEADER - 4]},..."}

    def _take_unknown(self, name: str) -> None:
        if self.strict:
            message = f"Unknown parameter: '{name[:64]}'. Leave it out; this server takes only the parameters it knows."
            raise InvalidRequest(message, name[:64], "unknown_parameter")
        self.ignore(name)


@cache
def _fields(model: type[BaseModel]) -> Parameters:
    return {field.alias or name: supported("") for name, field in model.model_fields.items()}


@cache
def _objects(model: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """The fields of `model` that are objects themselves, perhaps optional or in a list."""
    return {
        field.alias or name: kind
        for name, field in model.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def header_safe(text: str) -> str:
    """`text` as one short token of printable ASCII without commas, fit for a header."""
    return re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", text[:64])


def _parent(path: str) -> str | None:
    return path.rstrip(".") or None


def _refusal(name: str, parameter: Parameter) -> InvalidRequest:
    alternative = f" or send {orjson.dumps(parameter.allowed[0]).decode()}" if parameter.allowed else ""
    message = f"Unsupported parameter: '{name}'. {parameter.note} Leave it out{alternative}."
    return InvalidRequest(message, name, "unsupported_parameter")
