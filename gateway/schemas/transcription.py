"""POST /v1/audio/transcriptions: what is taken."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import Field

from gateway.schemas.common import ModelName, Screen, Wire
from gateway.schemas.parameters import TRANSCRIPTION
from gateway.schemas.verdicts import Parameters
from handlers.transcription.types import TranscriptionRequest


class TranscriptionParams(Wire):
    """The fields beside the file."""

    model: ModelName
    language: Annotated[str, Field(max_length=32)] | None = None
    prompt: str | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0

    @classmethod
    def parse(cls, form: Iterable[tuple[str, str]], screen: Screen) -> Self:
        """form: the text fields in order. Raises InvalidRequest, naming what is wrong."""
        return cls.read_strings(screen.sort(_fields(form), _TEXT_FIELDS))

    def to_request(self, file: BinaryIO) -> TranscriptionRequest:
        return TranscriptionRequest(file, self.language, self.prompt, self.temperature)


_TEXT_FIELDS: Parameters = {name: parameter for name, parameter in TRANSCRIPTION.items() if name != "file"}


def _fields(form: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """By plain name: `include[]` and `chunking_strategy[type]` are how forms write lists and objects.

    An empty field is how a form says null. Of a repeated one the last counts.
    """
    return {re.sub(r"\[\w*\]$", "", name): value or None for name, value in form}
