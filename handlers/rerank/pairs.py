"""A query and a document in one sequence of tokens, as a model reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlers.rerank.texts import Texts, TokenIds, refuse_instruction
from handlers.rerank.types import RerankRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """document_at: where the document begins."""

    token_ids: TokenIds
    document_at: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model reads a pair: opening, query, middle, document, closing, three of them as token ids.

    query: the words around the query, with {query} and, where the model takes one, {instruction}. lead: the words
    before a document. instruction: what is taken where none is sent; None for models that take none.
    """

    opening: TokenIds
    middle: TokenIds
    closing: TokenIds
    query: str = "{query}"
    lead: str = ""
    instruction: str | None = None

    def query_text(self, request: RerankRequest) -> str:
        return self.query.format(query=request.query, instruction=request.instruction or self.instruction)


class Pairs:
    """Builds the pairs of one model. The query of a request is tokenized once. Called in a worker thread."""

    def __init__(self, name: str, tokenizer: "Tokenizer", layout: Layout, max_model_len: int) -> None:
        self._name = name
        self._layout = layout
        self._texts = Texts(name, tokenizer)
        self._room = max_model_len - len(layout.opening) - len(layout.middle) - len(layout.closing)

    def before(self, request: RerankRequest) -> TokenIds:
        """What stands before each document. Raises InvalidRequest where that leaves no room for one."""
        if self._layout.instruction is None:
            refuse_instruction(self._name, request)
        query = self._texts.query(self._layout.query_text(request), self._room - 1)
        return [*self._layout.opening, *query, *self._layout.middle]

    def of(self, request: RerankRequest, before: TokenIds, start: int) -> list[Pair]:
        """The pairs of one turn. Raises InvalidRequest naming a document that is too long."""
        room = self._room - (len(before) - len(self._layout.opening) - len(self._layout.middle))
        documents = self._texts.documents(request, start, room, self._layout.lead)
        return [Pair([*before, *ids, *self._layout.closing], len(before)) for ids in documents]


def sentence_pair(tokenizer: "Tokenizer") -> tuple[Layout, bool]:
    """The layout that a tokenizer gives to two sentences, and whether it tells them apart by their types.

    Raises ValueError where no special token stands between the two.
    """
    whole = tokenizer.encode("a", "a")
    first, second = (_places(whole.sequence_ids, sentence) for sentence in (0, 1))
    if not first or not second or first[-1] + 1 == second[0]:
        raise ValueError("its tokenizer puts nothing between a query and a document, so it is no cross-encoder's")
    has_types = any(whole.type_ids)
    if has_types and whole.type_ids != [int(place >= second[0]) for place in range(len(whole.ids))]:
        raise ValueError("its tokenizer gives other types to the tokens of a pair than 0 and 1")
    opening, middle, closing = whole.ids[: first[0]], whole.ids[first[-1] + 1 : second[0]], whole.ids[second[-1] + 1 :]
    return Layout(opening, middle, closing), has_types


def _places(sequence_ids: Sequence[int | None], sentence: int) -> list[int]:
    return [place for place, of in enumerate(sequence_ids) if of == sentence]
