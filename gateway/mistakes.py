"""How mistakes in the settings are found by name, worded and reported together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_MAX_SHOWN = 80  # characters of a refused value that a message repeats


class SettingsError(Exception):
    """The settings cannot be used. Each of `mistakes` is one line that begins with the name of what is wrong."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(" ".join(mistake.splitlines()) for mistake in mistakes)
        super().__init__("\n".join(self.mistakes))


class Refusal(ValueError):
    """Raised by a validator that can say more than its field's Allowed; the text stands for itself."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a value may be; completes "must be …". A secret one is never repeated in a message."""

    text: str
    is_secret: bool = False

    def refuse(self, value: object) -> str:
        return f"must be {self.text}" + ("" if self.is_secret else f", not {_shortened(value)}")


def allowed_values(model: type[BaseModel]) -> Mapping[str, Allowed]:
    """What each field of `model` may be, from the Allowed in its annotation."""
    return {name: _find_allowed(field) for name, field in model.model_fields.items()}


def reason(error: ErrorDetails, allowed: Allowed) -> str:
    """What one of pydantic's errors means to the person who wrote the value."""
    refusal = error.get("ctx", {}).get("error")
    if isinstance(refusal, Refusal):
        return str(refusal)
    if error["type"] == "missing":
        return f"is missing; it must be {allowed.text}"
    return allowed.refuse(error["input"])


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence that names the known word nearest to `word`; empty if none is near.

    prefix: what all the words begin with, which makes none of them nearer than another.
    """
    suffixes = [name.removeprefix(prefix) for name in known]
    near = get_close_matches(word.removeprefix(prefix), suffixes, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _find_allowed(field: FieldInfo) -> Allowed:
    """Optional values carry theirs one level down: `Annotated[int, Allowed("…")] | None`."""
    inner: list[Any] = [data for option in get_args(field.annotation) for data in getattr(option, "__metadata__", ())]
    return next(data for data in [*field.metadata, *inner] if isinstance(data, Allowed))


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
