"""The text fields of an audio form, in every spelling that clients have for lists and objects."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from gateway.schemas.common import loads
from gateway.schemas.verdicts import Parameters
from handlers.errors import InvalidRequest

LISTS = frozenset(
    {
        "include",
        "timestamp_granularities",
        "keywords",
        "languages",
        "known_speaker_names",
        "known_speaker_references",
    }
)
OBJECTS = frozenset({"chunking_strategy"})

_SPELLING = re.compile(r"([^\[\]]+)(?:\[(\w*)\])?")

# A field as it was spelled: None for `name`, "" for `name[]`, "key" for `name[key]`; and its value.
_Entry = tuple[str | None, str]


def read_form(form: Iterable[tuple[str, str]], table: Parameters) -> dict[str, Any]:
    """One value a plain name: a text, a list of texts, a dict (of texts, unless it came as JSON), or None.

    form: the text fields in order. An empty one is how a form says null. table: the names that are known; all of them
    are read once only, apart from LISTS and OBJECTS. Of an unknown name, any value will do.
    Raises InvalidRequest for what was sent twice or in a spelling that the name has not.
    """
    entries: dict[str, list[_Entry]] = {}
    for spelled, value in form:
        if value:
            name, key = _split(spelled)
            entries.setdefault(name, []).append((key, value))
    return {name: _value(name, sent, table) for name, sent in entries.items()}


def _split(spelled: str) -> tuple[str, str | None]:
    match = _SPELLING.fullmatch(spelled)
    return (match[1], match[2]) if match else (spelled, None)


def _value(name: str, sent: Sequence[_Entry], table: Parameters) -> Any:
    if name in LISTS:
        return _list(name, sent)
    if name in OBJECTS:
        return _object(name, sent)
    return _single(name, sent) if name in table else sent[0][1]


def _single(name: str, sent: Sequence[_Entry]) -> str:
    _refuse_repeated(name, sent)
    [(key, value)] = sent
    if key is not None:
        message = f"'{name}' is one value, but came as '{name}[{key[:64]}]'. Send it as '{name}'."
        raise InvalidRequest(message, name, "invalid_type")
    return value


def _list(name: str, sent: Sequence[_Entry]) -> list[str] | None:
    """None for an empty one."""
    for key, _ in sent:
        if key:
            message = f"'{name}' is a list, but came as '{name}[{key[:64]}]'. Send each entry as '{name}[]'."
            raise InvalidRequest(message, name, "invalid_type")
    [(key, value), *more] = sent
    if key is None and not more and isinstance(parsed := _json(value, "["), list):
        return [_text(item, f"{name}[{i}]") for i, item in enumerate(parsed)] or None
    return [value for _, value in sent]


def _object(name: str, sent: Sequence[_Entry]) -> str | dict[str, Any]:
    """A text stays one, unless it is a JSON object."""
    if len(sent) == 1 and sent[0][0] is None:
        value = sent[0][1]
        parsed = _json(value, "{")
        return {key: _as_text(item) for key, item in parsed.items()} if isinstance(parsed, dict) else value
    fields: dict[str, list[_Entry]] = {}
    for key, value in sent:
        if not key:
            message = f"'{name}' came in two spellings. Send it once: as one field, or as '{name}[…]' for each entry."
            raise InvalidRequest(message, name, "invalid_value")
        fields.setdefault(key, []).append((None, value))
    return {key: _single(f"{name}.{key}", values) for key, values in fields.items()}


def _refuse_repeated(name: str, sent: Sequence[_Entry]) -> None:
    if len(sent) > 1:
        raise InvalidRequest(f"'{name[:100]}' was sent {len(sent)} times. Send it once.", name[:100], "invalid_value")


def _json(value: str, opening: str) -> object:
    """What `value` is in JSON, if it begins as expected; else None: a word may have brackets around it."""
    if not value.lstrip().startswith(opening):
        return None
    try:
        return loads(value.encode())
    except orjson.JSONDecodeError:
        return None


def _text(item: object, param: str) -> str:
    if isinstance(item, str):
        return item
    raise InvalidRequest(f"Invalid type for '{param}': expected a string.", param, "invalid_type")


def _as_text(item: object) -> object:
    """A number or a boolean as a form would have it, so that `true` is no number here either."""
    return orjson.dumps(item).decode() if isinstance(item, bool | int | float) else item
