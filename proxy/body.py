"""What is sent on of a request: its bytes, unread but for the name of the model, which may have another name there."""

import re
from collections.abc import AsyncIterable

import orjson

Content = bytes | AsyncIterable[bytes]

_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_OPENS, _CLOSES = (b"{", b"["), (b"}", b"]")


def with_model(body: bytes, name: str) -> bytes:
    """A JSON object with another value of its member `model`, and every other byte as it was.

    The object must have been parsed before: nothing is checked here.
    """
    pieces, end = [], 0
    for start, stop in _models(body):
        pieces += [body[end:start], orjson.dumps(name)]
        end = stop
    return b"".join((*pieces, body[end:]))


def _models(body: bytes) -> list[tuple[int, int]]:
    """Where the strings are that are values of `model`. A member that comes twice counts twice."""
    found, depth, key, after_colon = [], 0, b"", False
    for token in _TOKENS.finditer(body):
        text = token[0]
        if text in _OPENS:
            depth += 1
        elif text in _CLOSES:
            depth -= 1
        elif depth == 1 and text == b":":
            after_colon = True
            continue
        elif depth == 1 and text.startswith(b'"'):
            if not after_colon:
                key = text
            elif _is_model(key):
                found.append(token.span())
        after_colon = False
    return found


def _is_model(key: bytes) -> bool:
    return key == b'"model"' or (b"\\" in key and orjson.loads(key) == "model")
