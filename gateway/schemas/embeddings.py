"""POST /v1/embeddings: what is taken."""

from typing import Annotated, Literal, Self

from pydantic import Field, PlainValidator

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.inputs import InputForms, Inputs
from gateway.schemas.parameters import EMBEDDINGS
from handlers.embeddings.types import WHOLE, EmbeddingRequest, PromptChoice
from handlers.errors import InvalidRequest

OPENAI_NAMES = "text-embedding-"

_INPUT = InputForms("input", max_items=2048)
_PROMPT_PARAMETERS = ("prompt_name", "input_type", "task")

PromptWord = Annotated[str, Field(min_length=1, max_length=256)]


class EmbeddingParams(Wire):
    model: ModelName
    input: Annotated[Inputs, PlainValidator(_INPUT.read)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=WHOLE)] | None = None
    truncate: bool | None = None
    prompt_name: PromptWord | None = None
    input_type: PromptWord | None = None
    task: PromptWord | None = None
    normalize: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        params = cls.read(screen.sort(read_object(body), EMBEDDINGS))
        if params.truncate is False and params.truncate_prompt_tokens is not None:
            message = "'truncate' forbids what 'truncate_prompt_tokens' asks for. Send one of them."
            raise InvalidRequest(message, "truncate", "invalid_value")
        if len(chosen := params._prompt_choices()) > 1:
            names = " and ".join(f"'{choice.param}'" for choice in chosen)
            message = f"{names} all choose a prompt. Send one of them."
            raise InvalidRequest(message, chosen[-1].param, "invalid_value")
        return params

    def to_request(self, cache_salt: str = "") -> EmbeddingRequest:
        """Who calls a model by OpenAI's name for it sends token ids of OpenAI's tokenizer.

        cache_salt: the caller's own, with who the caller is.
        """
        return EmbeddingRequest(
            inputs=self.input,
            dimensions=self.dimensions,
            openai_ids=self.model.startswith(OPENAI_NAMES),
            prompt=next(iter(self._prompt_choices()), None),
            cut_to=WHOLE if self.truncate and self.truncate_prompt_tokens is None else self.truncate_prompt_tokens,
            normalize=self.normalize,
            cache_salt=cache_salt,
        )

    def _prompt_choices(self) -> list[PromptChoice]:
        values = {name: getattr(self, name) for name in _PROMPT_PARAMETERS}
        return [PromptChoice(name, value) for name, value in values.items() if value is not None]
