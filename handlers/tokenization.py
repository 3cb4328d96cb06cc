"""A model's tokenizer, straight from its tokenizer.json. transformers is not imported: that takes seconds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from handlers.errors import ModelLoadError


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as trained: texts are neither cut nor padded, whatever the file asks for.

    Raises ModelLoadError with one line that names the file and what is wrong.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelLoadError(f"{folder} has no tokenizer.json, which is needed; save the model with a fast tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers has no class of its own for what it cannot read
        raise ModelLoadError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from error
    return unlimited(tokenizer)


def read_tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """What transformers has written beside the tokenizer; empty if nothing. Raises OSError or ValueError."""
    file = folder / "tokenizer_config.json"
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config


def unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, from now on neither cutting nor padding."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
