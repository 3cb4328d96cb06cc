"""POST /v1/chat/completions: what is taken."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, FailFast, Field

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.messages import Message, plain_messages
from gateway.schemas.parameters import CHAT, STREAM_OPTIONS
from handlers.chat.types import ChatRequest, Sampling
from handlers.errors import InvalidRequest


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stop = Annotated[list[StopText], FailFast(), Field(max_length=64), BeforeValidator(_as_list)]


class StreamOptions(Wire):
    include_usage: bool = False


class ChatCompletionParams(Wire):
    model: ModelName
    messages: Annotated[list[Message], FailFast()]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: Seed | None = None
    stop: Stop = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    service_tier: str = "auto"

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        fields = screen.sort(read_object(body), CHAT)
        _sort_nested(fields, screen)
        params = cls.read(fields)
        if "stream_options" in fields and not params.stream:
            message = "'stream_options' is only allowed when 'stream' is true. Leave it out, or set 'stream' to true."
            raise InvalidRequest(message, "stream_options", "invalid_value")
        return params

    @property
    def served_tier(self) -> str:
        return "flex" if self.service_tier == "flex" else "default"

    def to_request(self) -> ChatRequest:
        return ChatRequest(
            messages=[{"role": message.role, "content": message.content} for message in self.messages],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=Sampling(self.temperature, self.top_p, self.seed),
            stop=tuple(self.stop),
        )


def _sort_nested(fields: dict[str, Any], screen: Screen) -> None:
    if "messages" in fields:
        fields["messages"] = plain_messages(fields["messages"], screen)
    if isinstance(options := fields.get("stream_options"), dict):
        fields["stream_options"] = screen.sort(options, STREAM_OPTIONS, "stream_options.")
