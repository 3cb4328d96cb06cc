"""From messages to token ids, and from token ids to text."""

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from handlers.chat.engine import Prompt
from handlers.chat.types import ChatRequest
from handlers.errors import InvalidRequest


class PromptBuilder:
    """Renders and tokenizes conversations for one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._longest_token = max(len(token.encode()) for token in tokenizer.get_vocab())
        self._knows_developer = "developer" in str(tokenizer.chat_template)

    def build(self, request: ChatRequest) -> Prompt:
        """Raises InvalidRequest when the template refuses the messages or the context is too short for them."""
        self._refuse_hopeless(request.messages)
        token_ids = self._tokenizer(self._render(request.messages), add_special_tokens=False)["input_ids"]
        return Prompt(token_ids, self._max_tokens(len(token_ids), request.max_tokens), request.sampling)

    def _refuse_hopeless(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Text that cannot fit however well it tokenizes is refused before the time is spent on tokenizing it."""
        size = sum(len(message["content"].encode()) for message in messages)
        if size > self._max_model_len * self._longest_token:
            raise context_length_exceeded(self._max_model_len, f"your messages are {size} bytes long")

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self._knows_developer:
            messages = [_as_system(message) for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                [*map(dict, messages)], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InvalidRequest(f"The model's chat template refuses these messages: {error}.", "messages") from error
        return str(text)

    def _max_tokens(self, prompt_tokens: int, asked: int | None) -> int:
        room = self._max_model_len - prompt_tokens
        if room < 1 or (asked or 1) > room:
            wanted = f" and {asked} tokens for the completion" if asked else ""
            raise context_length_exceeded(
                self._max_model_len, f"you asked for {prompt_tokens} tokens in the messages{wanted}"
            )
        return asked or room


class Detokenizer:
    """Text of one answer as its tokens come: a character split over tokens is held back until it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        text = self._stream.step(self._backend, token)
        if text is None:
            self._held.append(token)
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """What was held back when the answer ends there: a cut character, as its replacement."""
        return self._backend.decode(self._held, skip_special_tokens=True)


def context_length_exceeded(max_model_len: int, asked: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model's maximum context length is {max_model_len} tokens. However, {asked}. "
        "Shorten the messages or lower max_completion_tokens.",
        "messages",
        "context_length_exceeded",
    )


def _as_system(message: Mapping[str, str]) -> Mapping[str, str]:
    return {**message, "role": "system"} if message["role"] == "developer" else message
