"""POST /v1/embeddings: what is taken."""

from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.inputs import InputForms, Inputs
from gateway.schemas.parameters import EMBEDDINGS
from handlers.embeddings.types import EmbeddingRequest

OPENAI_NAMES = "text-embedding-"

_INPUT = InputForms("input", max_items=2048)


class EmbeddingParams(Wire):
    model: ModelName
    input: Annotated[Inputs, PlainValidator(_INPUT.read)]
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
