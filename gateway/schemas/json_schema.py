"""JSON of the caller's that is handed on as it is: schemas and template variables, bounded in size and depth."""

from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BeforeValidator

MAX_BYTES = 131_072  # of one schema
MAX_DEPTH = 64


def bounded(value: dict[str, Any], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """`value`, if it is small enough; raises ValueError with the limit otherwise."""
    # The depth first: orjson writes no more than 254 levels.
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"must not be nested deeper than {MAX_DEPTH}")
    if len(orjson.dumps(value)) > max_bytes:
        raise ValueError(f"must not be longer than {max_bytes} bytes of JSON")
    return value


def _depth(value: object) -> int:
    """How many containers are in each other at most; level by level, for a body may be nested 1024 deep."""
    depth, level = 0, [value]
    while level := [node for node in level if isinstance(node, (dict, list))]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        return value
    if len(value) > MAX_BYTES:
        raise ValueError(f"must not be longer than {MAX_BYTES} bytes of JSON")
    return orjson.loads(value)


Schema = Annotated[dict[str, Any], AfterValidator(bounded)]
SchemaOrText = Annotated[Schema, BeforeValidator(_decoded)]
