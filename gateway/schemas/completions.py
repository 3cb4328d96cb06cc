"""POST /v1/completions: what is taken."""

from typing import Annotated

from pydantic import Field, PlainValidator

from gateway.schemas.generation import MAX_CHOICES, Choices, GenerationParams
from gateway.schemas.inputs import InputForms, Inputs
from gateway.schemas.parameters import COMPLETIONS
from handlers.chat.types import CompletionRequest
from handlers.errors import InvalidRequest

# Whether there is a token to begin an empty prompt with is for the model to say.
_PROMPT = InputForms("prompt", max_items=MAX_CHOICES, empty_texts=True)


class CompletionParams(GenerationParams):
    TABLE = COMPLETIONS

    prompt: Annotated[Inputs, PlainValidator(_PROMPT.read)]
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 16
    best_of: Choices | None = None
    echo: bool = False
    suffix: str = ""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    def check(self) -> None:
        self.check_stream()
        self.check_min_tokens(self.max_tokens)
        self._check_choices()
        if self.max_tokens == 0 and not self.echo:
            message = "'max_tokens' may be 0 only when 'echo' is true. Send at least 1."
            raise InvalidRequest(message, "max_tokens", "invalid_value")

    def _check_choices(self) -> None:
        made = self.best_of or self.n
        if made < self.n:
            message = f"'best_of' must be at least 'n', which is {self.n}. Raise it, or leave it out."
            raise InvalidRequest(message, "best_of", "invalid_value")
        if made > self.n and self.stream:
            message = "'best_of' cannot be streamed: the best is known only at the end. Leave it out, or 'stream'."
            raise InvalidRequest(message, "best_of", "invalid_value")
        if made * len(self.prompt) > MAX_CHOICES:
            param = "best_of" if self.best_of else "n"
            message = f"{len(self.prompt)} prompts with {made} answers each are more than {MAX_CHOICES} answers."
            raise InvalidRequest(f"{message} Send several requests.", param, "invalid_value")

    def to_request(self, cache_salt: str = "") -> CompletionRequest:
        """cache_salt: the caller's own, with who the caller is."""
        return CompletionRequest(
            prompts=self.prompt,
            max_tokens=self.max_tokens,
            sampling=self.sampling(self.logprobs),
            stop=tuple(self.stop),
            n=self.n,
            best_of=self.best_of if self.best_of != self.n else None,
            echo=self.echo,
            suffix=self.suffix or None,
            output_format=self.output_format(),
            cache_salt=cache_salt,
        )
