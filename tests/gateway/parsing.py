"""Bodies of chats and completions, read as the routes read them."""

from typing import Any

import orjson
import pytest

from gateway.schemas.chat import ChatCompletionParams
from gateway.schemas.common import Screen
from gateway.schemas.completions import CompletionParams
from handlers.chat.types import ChatRequest, CompletionRequest
from handlers.errors import InvalidRequest

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "m", "messages": HELLO}


def parse_chat(screen: Screen | None = None, **fields: Any) -> ChatRequest:
    body = orjson.dumps({**CHAT, **fields})
    return ChatCompletionParams.parse(body, screen or Screen()).to_request()


def parse_completion(screen: Screen | None = None, **fields: Any) -> CompletionRequest:
    body = orjson.dumps({"model": "m", "prompt": "Once", **fields})
    return CompletionParams.parse(body, screen or Screen()).to_request()


def refusal_of_chat(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(**fields)
    return caught.value


def refusal_of_completion(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(**fields)
    return caught.value
