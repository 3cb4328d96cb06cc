"""How tokens are chosen, the same for chats and completions."""

import re
from typing import Annotated

from pydantic import BeforeValidator, FailFast, Field

from gateway.schemas.common import Wire
from handlers.chat.types import Sampling
from handlers.errors import InvalidRequest

MAX_BIASES = 1024

Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], FailFast(), Field(max_length=64)]


def _token_keys(bias: object) -> object:
    """JSON has no integer keys: `{"50256": -100}`. Values are judged by the type."""
    if not isinstance(bias, dict):
        return bias
    if len(bias) > MAX_BIASES:
        message = f"'logit_bias' holds {len(bias)} tokens; at most {MAX_BIASES} are taken."
        raise InvalidRequest(message, "logit_bias", "invalid_value")
    return {_token_key(key): value for key, value in bias.items()}


def _token_key(key: str) -> int:
    if re.fullmatch("0|[1-9][0-9]{0,9}", key) and int(key) < 2**31:
        return int(key)
    shown = f", but got '{key}'" if len(key) <= 40 and key.isprintable() else ""
    message = f"Invalid key in 'logit_bias': keys must be token ids of the model, such as '50256'{shown}."
    raise InvalidRequest(message, "logit_bias", "invalid_value")


Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[int, Bias], FailFast(), BeforeValidator(_token_keys)]


class SamplingParams(Wire):
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    logit_bias: Biases = Field(default_factory=dict)
    seed: Seed | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    ignore_eos: bool = False
    stop_token_ids: TokenIds = Field(default_factory=list)

    def sampling(self, top_logprobs: int | None) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_token_ids=tuple(self.stop_token_ids),
            top_logprobs=top_logprobs,
        )

    def check_min_tokens(self, max_tokens: int | None) -> None:
        if max_tokens is not None and self.min_tokens > max_tokens:
            message = f"'min_tokens' is {self.min_tokens}, more than the {max_tokens} tokens the answer may have."
            raise InvalidRequest(f"{message} Lower it.", "min_tokens", "invalid_value")
