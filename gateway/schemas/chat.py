"""POST /v1/chat/completions: what is taken."""

from typing import Annotated, Any

from pydantic import FailFast, Field

from gateway.schemas.common import Screen
from gateway.schemas.generation import GenerationParams
from gateway.schemas.messages import Message, inner_messages, plain_messages
from gateway.schemas.parameters import CHAT
from gateway.schemas.template import TemplateParams
from gateway.schemas.tools import Function, ToolParams, known_tools
from handlers.chat.types import ChatRequest
from handlers.errors import InvalidRequest

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChatCompletionParams(GenerationParams, ToolParams, TemplateParams):
    TABLE = CHAT

    messages: Annotated[list[Message], FailFast()]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @classmethod
    def sort_nested(cls, fields: dict[str, Any], screen: Screen) -> None:
        if "messages" in fields:
            fields["messages"] = plain_messages(fields["messages"], screen)
        if "tools" in fields:
            fields["tools"] = known_tools(fields["tools"], screen)
        if "functions" in fields:
            fields["functions"] = screen.known(fields["functions"], Function, "functions")
        super().sort_nested(fields, screen)

    def check(self) -> None:
        self.check_stream()
        self.check_tools()
        self.check_turns()
        self.check_min_tokens(self._limit)
        if self.top_logprobs and not self.logprobs:
            message = "'top_logprobs' is only allowed when 'logprobs' is true. Leave it out, or set 'logprobs' to true."
            raise InvalidRequest(message, "top_logprobs", "invalid_value")

    @property
    def _limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def to_request(self, cache_salt: str = "") -> ChatRequest:
        """cache_salt: the caller's own, with who the caller is."""
        return ChatRequest(
            messages=inner_messages(self.messages),
            max_tokens=self._limit,
            sampling=self.sampling(self.top_logprobs if self.logprobs else None),
            stop=tuple(self.stop),
            n=self.n,
            output_format=self.output_format(),
            tools=self.inner_tools(),
            tool_choice=self.inner_choice(),
            parallel_tool_calls=self.parallel_tool_calls and not self.as_function_call,
            template_kwargs=self.template_kwargs(),
            add_generation_prompt=self.opens_turn,
            continue_final_message=self.continue_final_message,
            cache_salt=cache_salt,
        )
