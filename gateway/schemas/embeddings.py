"""POST /v1/embeddings: what is taken."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.parameters import EMBEDDINGS
from handlers.embeddings.types import EmbeddingRequest
from handlers.errors import InvalidRequest

MAX_INPUTS = 2048
MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 300_000  # of one request, as OpenAI has it
OPENAI_NAMES = "text-embedding-"

Inputs = Sequence[str | Sequence[int]]


def read_inputs(value: object) -> Inputs:
    """One of the four input forms as a list of items. Raises InvalidRequest naming the item at fault."""
    if isinstance(value, str):
        return [_text(value, "input")]
    if not isinstance(value, list):
        raise _not_an_input()
    if not value:
        raise InvalidRequest("'input' is an empty list. Send at least one text.", "input", "invalid_value")
    if type(value[0]) is int:
        _refuse_too_many(len(value))
        return [_tokens(value, "input")]
    return _items(value)


def _items(values: list[Any]) -> Inputs:
    if len(values) > MAX_INPUTS:
        message = f"'input' holds {len(values)} items; at most {MAX_INPUTS} are taken. Send several requests."
        raise InvalidRequest(message, "input", "invalid_value")
    kinds = set(map(type, values))
    if kinds == {str}:
        return [_text(value, f"input[{i}]") for i, value in enumerate(values)]
    if kinds == {list}:
        _refuse_too_many(sum(map(len, values)))
        return [_tokens(value, f"input[{i}]") for i, value in enumerate(values)]
    raise _not_an_input()


def _refuse_too_many(tokens: int) -> None:
    if tokens > MAX_TOKENS:
        message = f"'input' holds {tokens} token ids; at most {MAX_TOKENS} are taken. Send several requests."
        raise InvalidRequest(message, "input", "invalid_value")


def _text(text: str, path: str) -> str:
    if not text:
        raise InvalidRequest(f"'{path}' is empty. Send a text of at least one character.", path, "invalid_value")
    return text


def _tokens(tokens: list[Any], path: str) -> list[int]:
    # Types by set and bounds by min and max: a body may carry hundreds of thousands of token ids.
    if set(map(type, tokens)) != {int} or min(tokens) < 0 or max(tokens) > MAX_TOKEN_ID:
        message = f"'{path}' must hold token ids of the model: at least one integer, from 0 to {MAX_TOKEN_ID}."
        raise InvalidRequest(message, path, "invalid_value")
    return tokens


def _not_an_input() -> InvalidRequest:
    message = "'input' must be a text, a list of texts, a list of token ids, or a list of lists of token ids."
    return InvalidRequest(message, "input", "invalid_type")


class EmbeddingParams(Wire):
    model: ModelName
    input: Annotated[Inputs, PlainValidator(read_inputs)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        return cls.read(screen.sort(read_object(body), EMBEDDINGS))

    def to_request(self) -> EmbeddingRequest:
        """Who calls a model by OpenAI's name for it sends token ids of OpenAI's tokenizer."""
        openai_ids = self.model.startswith(OPENAI_NAMES)
        return EmbeddingRequest(inputs=self.input, dimensions=self.dimensions, openai_ids=openai_ids)
