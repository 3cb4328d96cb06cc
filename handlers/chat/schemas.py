"""Bounds on the JSON schemas that callers send, and the form in which the grammar library takes them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from handlers.errors import InvalidRequest

MAX_BYTES = 128 * 1024
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_PROPERTIES = 1_000
"""Of one object: what optional properties cost grows with their square."""

MAX_PATTERN = 2_000
_MAX_STEPS = 20_000

_OPTIONS = {
    # A line break with its indentation, or one space: unbounded, a weak model writes blanks until its tokens are spent.
    "whitespace_pattern": r"[ ]|\n[ ]{0,16}",
    "lenient": False,
    "coerce_one_of": False,
}


def write(schema: object, param: str) -> str:
    """The schema as JSON text with the options of the grammar library.

    Raises InvalidRequest, which names the keyword, for one that is too large, can only be followed without end, or asks
    for what the library would let pass.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, Mapping):
        raise InvalidRequest("A JSON schema is an object or a boolean.", param, "invalid_value")
    _check_nodes(schema, param)
    text = _dump(schema, param)
    if len(text) > MAX_BYTES:
        raise _refusal(f"the schema is larger than {MAX_BYTES} bytes", param)
    if _Endlessness(schema, param).holds(schema, frozenset()):
        raise _refusal("`$ref` requires the schema within itself, so that no answer would ever end", param)
    return _dump({**schema, "x-guidance": _OPTIONS}, param)


def _dump(schema: Mapping[str, Any], param: str) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError among them
        raise _refusal("the schema is not valid JSON", param) from error
    return text


def _check_nodes(schema: Mapping[str, Any], param: str) -> None:
    if "x-guidance" in schema:
        raise _refusal("`x-guidance` is not a keyword", param)
    for count, (node, depth) in enumerate(_nodes(schema)):
        if depth > MAX_DEPTH:
            raise _refusal(f"the schema is nested deeper than {MAX_DEPTH} levels", param)
        if count >= MAX_NODES:
            raise _refusal(f"the schema has more than {MAX_NODES} parts", param)
        if isinstance(node, Mapping):
            _check_keywords(node, param)


def _nodes(schema: object) -> Iterator[tuple[object, int]]:
    """Every value in the schema, however deep, with its depth."""
    left = [(schema, 1)]
    while left:
        node, depth = left.pop()
        yield node, depth
        children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
        left.extend((child, depth + 1) for child in children)


def _check_keywords(node: Mapping[str, Any], param: str) -> None:
    pattern, properties = node.get("pattern"), node.get("properties")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
        raise _refusal(f"`pattern` is longer than {MAX_PATTERN} characters", param)
    if isinstance(properties, Mapping) and len(properties) > MAX_PROPERTIES:
        raise _refusal(f"`properties` has more than {MAX_PROPERTIES} members", param)
    least, required = node.get("minProperties"), node.get("required")
    # A free key may come twice, and counts once: the library holds the number of members, not of keys.
    if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise _refusal("`minProperties` above the number of `required` properties is not supported", param)


class _Endlessness:
    """Whether every value that fits a schema contains another that fits it, and so on for ever."""

    def __init__(self, root: Mapping[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self._finite: set[str] = set()
        self._steps = 0

    def holds(self, schema: object, within: frozenset[str]) -> bool:
        """within: the references that this place has come through."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _refusal("`$ref` makes the schema too intricate", self._param)
        if not isinstance(schema, Mapping):
            return False
        return (
            self._reference(schema.get("$ref"), within)
            or any(self.holds(part, within) for part in _list(schema, "allOf"))
            or any(self._alternatives(_list(schema, keyword), within) for keyword in ("anyOf", "oneOf"))
            or any(self.holds(part, within) for part in _parts(schema))
        )

    def _alternatives(self, schemas: list[Any], within: frozenset[str]) -> bool:
        return bool(schemas) and all(self.holds(schema, within) for schema in schemas)

    def _reference(self, reference: object, within: frozenset[str]) -> bool:
        if not isinstance(reference, str) or reference in self._finite:
            return False
        if reference in within:
            return True
        endless = self.holds(_resolve(self._root, reference), within | {reference})
        if not endless:
            self._finite.add(reference)
        return endless


def _parts(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas of what a fitting value must contain."""
    properties, required = schema.get("properties"), _list(schema, "required")
    if schema.get("type") == "object" and isinstance(properties, Mapping):
        return [properties[name] for name in required if isinstance(name, str) and name in properties]
    if schema.get("type") == "array" and schema.get("minItems"):
        return [schema.get("items")]
    return []


def _list(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _resolve(root: object, reference: str) -> object:
    """What a local JSON pointer points at; None for any other reference, which the library judges."""
    if not reference.startswith("#"):
        return None
    node = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _refusal(reason: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"This JSON schema cannot be followed: {reason}.", param, "invalid_value")
