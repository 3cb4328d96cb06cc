"""Raw ASGI in the few forms that the middleware here needs. `Headers` objects cost more than all of it together."""

from collections.abc import Iterable

from starlette.types import Message, Scope


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case, as ASGI servers give it."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def with_headers(start: Message, added: Iterable[tuple[bytes, bytes]]) -> Message:
    """A copy of an `http.response.start` in which the added headers replace those of the same name."""
    added = list(added)
    replaced = {name for name, _ in added}
    kept = [pair for pair in start.get("headers", ()) if pair[0].lower() not in replaced]
    return {**start, "headers": kept + added}
