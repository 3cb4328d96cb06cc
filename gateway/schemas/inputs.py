"""Texts or token ids, one or many: the forms that the input of embeddings and the prompt of completions may have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import InvalidRequest

MAX_TOKEN_ID = 2**31 - 1
MAX_TOKENS = 300_000  # of one request, as OpenAI has it

Inputs = Sequence[str | Sequence[int]]


@dataclass(frozen=True, slots=True)
class InputForms:
    """Reads the parameter `param`, of at most `max_items` texts or lists of token ids."""

    param: str
    max_items: int
    empty_texts: bool = False

    def read(self, value: object) -> Inputs:
        """One of the four forms as a list of items. Raises InvalidRequest naming the item at fault."""
        if isinstance(value, str):
            return [self._text(value, self.param)]
        if not isinstance(value, list):
            raise self._no_form()
        if not value:
            message = f"'{self.param}' is an empty list. Send at least one text."
            raise InvalidRequest(message, self.param, "invalid_value")
        if type(value[0]) is int:
            self._refuse_too_many(len(value))
            return [_tokens(value, self.param)]
        return self._items(value)

    def _items(self, values: list[Any]) -> Inputs:
        if len(values) > self.max_items:
            held, most = len(values), self.max_items
            message = f"'{self.param}' holds {held} items; at most {most} are taken. Send several requests."
            raise InvalidRequest(message, self.param, "invalid_value")
        kinds = set(map(type, values))
        if kinds == {str}:
            return [self._text(value, f"{self.param}[{i}]") for i, value in enumerate(values)]
        if kinds == {list}:
            self._refuse_too_many(sum(map(len, values)))
            return [_tokens(value, f"{self.param}[{i}]") for i, value in enumerate(values)]
        raise self._no_form()

    def _text(self, text: str, path: str) -> str:
        if not text and not self.empty_texts:
            raise InvalidRequest(f"'{path}' is empty. Send a text of at least one character.", path, "invalid_value")
        return text

    def _refuse_too_many(self, tokens: int) -> None:
        if tokens > MAX_TOKENS:
            message = f"'{self.param}' holds {tokens} token ids; at most {MAX_TOKENS} are taken. Send several requests."
            raise InvalidRequest(message, self.param, "invalid_value")

    def _no_form(self) -> InvalidRequest:
        message = f"'{self.param}' must be a text, a list of texts, a list of token ids, or a list of such lists."
        return InvalidRequest(message, self.param, "invalid_type")


def _tokens(tokens: list[Any], path: str) -> list[int]:
    # Types by set and bounds by min and max: a body may carry hundreds of thousands of token ids.
    if set(map(type, tokens)) != {int} or min(tokens) < 0 or max(tokens) > MAX_TOKEN_ID:
        message = f"'{path}' must hold token ids of the model: at least one integer, from 0 to {MAX_TOKEN_ID}."
        raise InvalidRequest(message, path, "invalid_value")
    return tokens
