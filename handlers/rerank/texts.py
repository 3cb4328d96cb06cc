"""Queries and documents to token ids, what is too long refused by name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from handlers.errors import InvalidRequest
from handlers.rerank.types import RerankRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenIds = Sequence[int]

DOCUMENTS_PER_TURN = 64
"""So many are tokenized at once: a long list does not keep everybody else's waiting."""

# Far more than texts have; a tokenizer takes seconds for a few megabytes.
_MAX_CHARACTERS_PER_TOKEN = 128


class Texts:
    """Tokenizes for one model, without special tokens. Called in a worker thread.

    name: the model's, for messages.
    """

    def __init__(self, name: str, tokenizer: "Tokenizer") -> None:
        self._name = name
        self._tokenizer = tokenizer

    def query(self, text: str, room: int) -> TokenIds:
        """Raises InvalidRequest for more than `room` tokens."""
        length = _hopeless(text, room)
        ids: TokenIds = [] if length else self._tokenizer.encode(text, add_special_tokens=False).ids
        if length or len(ids) > room:
            raise InvalidRequest(
                f"The query is {length or f'{len(ids)} tokens'} long, and `{self._name}` has room for {max(0, room)}. "
                "Shorten it.",
                "query",
                "context_length_exceeded",
            )
        return ids

    def documents(self, request: RerankRequest, start: int, room: int, lead: str = "") -> list[TokenIds]:
        """Of one turn from `start` on. lead: stands before every document.

        Raises InvalidRequest naming the first document of more than `room` tokens, unless it was to be cut.
        """
        most = request.max_tokens_per_doc
        texts = request.documents[start : start + DOCUMENTS_PER_TURN]
        if most is not None:
            texts = [text[: most * _MAX_CHARACTERS_PER_TOKEN] for text in texts]
        for index, text in enumerate(texts, start):
            if length := _hopeless(text, room):
                raise self._overlong(index, length, room)
        encodings = self._tokenizer.encode_batch_fast([lead + text for text in texts], add_special_tokens=False)
        token_ids: list[TokenIds] = [encoding.ids[:most] for encoding in encodings]
        for index, ids in enumerate(token_ids, start):
            if len(ids) > room:
                raise self._overlong(index, f"{len(ids)} tokens", room)
        return token_ids

    def _overlong(self, index: int, length: str, room: int) -> InvalidRequest:
        return InvalidRequest(
            f"Document {index} is {length} long, and beside this query `{self._name}` has room for {room} tokens. "
            f"Send max_tokens_per_doc={room} to have longer documents cut, or split it.",
            f"documents[{index}]",
            "context_length_exceeded",
        )


def _hopeless(text: str, room: int) -> str:
    """The length of a text that cannot fit however well it tokenizes; empty for all others."""
    return f"{len(text)} characters" if len(text) > max(1, room) * _MAX_CHARACTERS_PER_TOKEN else ""


def refuse_instruction(name: str, request: RerankRequest) -> None:
    """For models that were trained without one. Raises InvalidRequest."""
    if request.instruction is not None:
        message = f"`{name}` takes no instruction: it was trained for one kind of relevance. Leave 'instruction' out."
        raise InvalidRequest(message, "instruction", "unsupported_parameter")
