"""What a model wants before a text, such as "query: ", as sentence-transformers keeps it in the model's folder.

https://sbert.net/examples/sentence_transformer/applications/computing-embeddings/README.html#prompt-templates
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from handlers.embeddings.types import PromptChoice
from handlers.errors import InvalidRequest

_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "corpus", "search_document", "retrieval.passage")
_ROLES: Mapping[str, tuple[str, ...]] = {**dict.fromkeys(_QUERY, _QUERY), **dict.fromkeys(_DOCUMENT, _DOCUMENT)}
"""Words of Cohere, Voyage, Jina and sentence-transformers for the two sides of a search; each side's mean the same."""

_PURPOSES = ("classification", "clustering", "separation", "text-matching")
"""What else Cohere and Jina tell apart."""


class Prompts:
    """texts: by name; an empty one stands for none. default: the name of the one that goes before every text.

    model: its name, for messages.
    """

    def __init__(self, model: str, texts: Mapping[str, str], default: str | None = None) -> None:
        self.names = tuple(texts)
        self.default = default
        self._model = model
        self._texts = texts
        self._any = any(texts.values())

    def text(self, choice: PromptChoice | None) -> str | None:
        """The prompt; None where the choice means nothing, because the model treats all texts alike.

        Raises InvalidRequest for a name that is not there.
        """
        if choice is None:
            return self._texts[self.default] if self.default else ""
        if choice.value in self._texts:
            return self._texts[choice.value]
        if choice.param == "prompt_name":
            raise self._unknown(choice)
        return self._for_purpose(choice)

    def of_search(self, side: Literal["query", "document"]) -> str:
        """What goes before the texts of that side; the default where the model does not tell the sides apart."""
        default = self._texts[self.default] if self.default else ""
        if not any(name in self._texts for name in (*_QUERY, *_DOCUMENT)):
            return default
        return next((self._texts[name] for name in _ROLES[side] if name in self._texts), "")

    def _for_purpose(self, choice: PromptChoice) -> str | None:
        known = choice.value in _ROLES or choice.value in _PURPOSES
        if known and not self._any:
            return None
        for name in _ROLES.get(choice.value, ()):
            if name in self._texts:
                return self._texts[name]
        if choice.value in _ROLES and any(name in self._texts for name in (*_QUERY, *_DOCUMENT)):
            return ""  # a model that marks one side of a search only
        raise self._unknown(choice)

    def _unknown(self, choice: PromptChoice) -> InvalidRequest:
        there = f"its prompts are {', '.join(self.names)}" if self.names else "it has none"
        if choice.param == "prompt_name":
            way_out = "Send one of them." if self.names else "Leave 'prompt_name' out."
        else:
            way_out = "Send 'query' or 'document', or one of its prompts as 'prompt_name'."
            way_out = way_out if self.names else "Send 'query' or 'document', or leave it out."
        message = f"`{self._model}` has no prompt for '{choice.param}' {choice.value[:64]!r}; {there}. {way_out}"
        return InvalidRequest(message, choice.param, "invalid_value")


def load_prompts(model: str, folder: Path) -> Prompts:
    """From config_sentence_transformers.json. Raises OSError or ValueError."""
    file = folder / "config_sentence_transformers.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{file.name} has prompts that are not texts by name")
    if default is not None and default not in texts:
        raise ValueError(f"{file.name} names the default prompt {default!r}, which is not among its prompts")
    if any(texts.values()) and _left_out_of_pooling(folder):
        raise ValueError("its pooling leaves the prompt out, which is not supported")
    return Prompts(model, texts, default)


def _left_out_of_pooling(folder: Path) -> bool:
    file = folder / "1_Pooling" / "config.json"
    return file.exists() and json.loads(file.read_text()).get("include_prompt") is False
