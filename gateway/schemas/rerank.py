"""POST /v1/rerank: what is taken, and the reply, in the shape that clients of Cohere and of Jina read."""

from secrets import token_hex
from typing import Annotated, Any, Self

from pydantic import Field

from gateway.schemas.common import MAX_KEYS, ModelName, Screen, Wire, read_object
from gateway.schemas.parameters import RERANK
from handlers.errors import InvalidRequest
from handlers.rerank.types import Relevance, RerankRequest

MAX_DOCUMENTS = 2048
_DOCUMENTS_PER_SEARCH_UNIT = 100  # as Cohere counts them

Document = dict[str, Any]


class RerankParams(Wire):
    model: ModelName
    query: Annotated[str, Field(min_length=1)]
    documents: list[Document]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    raw_scores: bool = False
    instruction: Annotated[str, Field(min_length=1)] | None = None
    priority: int = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        fields = screen.sort(read_object(body), RERANK)
        if "texts" in fields:
            if "documents" in fields:
                raise InvalidRequest("'texts' is another name for 'documents'. Send one of them.", "texts")
            fields["documents"] = _documents(fields.pop("texts"), "texts")
        elif "documents" in fields:
            fields["documents"] = _documents(fields["documents"], "documents")
        return cls.read(fields)

    def to_request(self, cache_salt: str = "") -> RerankRequest:
        """cache_salt: the caller's own, with who the caller is."""
        texts = [document["text"] for document in self.documents]
        return RerankRequest(self.query, texts, self.max_tokens_per_doc, self.instruction, cache_salt)


def reply(params: RerankParams, relevance: Relevance) -> dict[str, Any]:
    """The best first. `meta` is Cohere's account of it, `usage` Jina's."""
    scores = relevance.raw if params.raw_scores else relevance.scores
    best = relevance.ranking()[: params.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": float(scores[index])} for index in best]
    if params.return_documents:
        results = [{**result, "document": params.documents[result["index"]]} for result in results]
    return {
        "id": f"rerank-{token_hex(12)}",
        "object": "list",
        "model": params.model,
        "results": results,
        "usage": {"prompt_tokens": relevance.tokens, "total_tokens": relevance.tokens},
        "meta": {
            "billed_units": {"search_units": -(-len(params.documents) // _DOCUMENTS_PER_SEARCH_UNIT)},
            "tokens": {"input_tokens": relevance.tokens},
        },
    }


def _documents(value: object, name: str) -> list[Document]:
    """Texts as objects, and objects as they are. Raises InvalidRequest naming the one at fault."""
    if not isinstance(value, list):
        raise InvalidRequest(f"'{name}' must be a list of texts, or of objects with a `text`.", name, "invalid_type")
    if not value:
        raise InvalidRequest(f"'{name}' is an empty list. Send at least one document.", name, "invalid_value")
    if len(value) > MAX_DOCUMENTS:
        message = f"'{name}' holds {len(value)} items; at most {MAX_DOCUMENTS} are taken. Send several requests."
        raise InvalidRequest(message, name, "invalid_value")
    return [_document(item, f"{name}[{i}]") for i, item in enumerate(value)]


def _document(item: object, path: str) -> Document:
    document = {"text": item} if isinstance(item, str) else item
    if not isinstance(document, dict):
        raise InvalidRequest(f"'{path}' must be a text, or an object with a `text`.", path, "invalid_type")
    if len(document) > MAX_KEYS:
        raise InvalidRequest(f"'{path}' has {len(document)} fields; at most {MAX_KEYS} are taken.", path)
    if document.get("image") is not None:
        message = f"Unsupported parameter: '{path}.image'. Documents are texts. Leave it out."
        raise InvalidRequest(message, f"{path}.image", "unsupported_parameter")
    _check_text(document.get("text"), path if isinstance(item, str) else f"{path}.text")
    return document


def _check_text(text: object, path: str) -> None:
    if text is None:
        raise InvalidRequest(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}' must be a text.", path, "invalid_type")
    if not text:
        raise InvalidRequest(f"'{path}' is empty. Send a text of at least one character.", path, "invalid_value")
