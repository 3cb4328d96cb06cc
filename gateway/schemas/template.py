"""What a chat's parameters tell the model's chat template."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.schemas.common import Wire
from gateway.schemas.json_schema import bounded
from handlers.errors import InvalidRequest

MAX_VARIABLES = 64
MAX_BYTES = 16_384

# The arguments of `apply_chat_template`, and what it hands to every template itself.
_RESERVED = frozenset(
    "self conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize "
    "padding truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "raise_exception strftime_now".split()
)


def _variables(variables: dict[str, Any]) -> dict[str, Any]:
    if len(variables) > MAX_VARIABLES:
        raise ValueError(f"must not hold more than {MAX_VARIABLES} variables")
    for name in variables:
        if not re.fullmatch("[a-zA-Z][a-zA-Z0-9_]{0,63}", name):
            raise ValueError("must have names of letters, digits and underscores only, at most 64 of them")
        if name in _RESERVED:
            raise ValueError(f"must not set '{name}', which is not the caller's to set there")
    return bounded(variables, MAX_BYTES)


class TemplateParams(Wire):
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @property
    def opens_turn(self) -> bool:
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    def template_kwargs(self) -> Mapping[str, Any]:
        if self.reasoning_effort is None:
            return self.chat_template_kwargs
        return {"enable_thinking": self.reasoning_effort != "none", **self.chat_template_kwargs}

    def check_turns(self) -> None:
        if self.continue_final_message and self.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other. Leave one of them out."
            raise InvalidRequest(message, "continue_final_message", "invalid_value")
