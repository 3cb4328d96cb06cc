"""Token ids of OpenAI's embedding models, back to text.

LangChain and others tokenize on the client, with OpenAI's own cl100k_base, and send the ids. To a model with another
vocabulary these ids would mean other words.
"""

from base64 import b64decode
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from handlers.errors import ModelLoadError

# What OpenAI's tiktoken calls its cached copy of cl100k_base: the SHA-1 of the address it comes from.
_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


class OpenAITokens:
    """The vocabulary of cl100k_base, from the folder that holds tiktoken's file of it. Raises ModelLoadError."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _FILE
        if not self._file.is_file():
            raise ModelLoadError(
                f"{folder} does not hold tiktoken's file of cl100k_base, {_FILE}; mend `openai_tokens`"
            )

    @cached_property
    def _pieces(self) -> dict[int, bytes]:
        """Read when it is first needed: most clients send text."""
        lines = self._file.read_bytes().splitlines()
        return {int(rank): b64decode(piece) for piece, rank in map(bytes.split, lines)}

    def decode(self, ids: Sequence[int]) -> str:
        """The text; an end that is cut within a character is replaced. Raises KeyError for an id that is no token."""
        return b"".join([self._pieces[id] for id in ids]).decode("utf-8", "replace")
