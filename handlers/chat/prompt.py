"""From messages, texts or token ids to prompts the engine takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from handlers.chat.constraints import Grammar
from handlers.chat.engine import Prompt, PromptImages
from handlers.chat.types import ChatRequest, CompletionRequest, Sampling
from handlers.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from handlers.chat.vision import ImageReader


class PromptBuilder:
    """Renders and tokenizes for one model. special_tokens: texts that the template may name, such as `bos_token`.

    reader: of a model that reads images.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str,
        special_tokens: Mapping[str, str],
        max_model_len: int,
        reader: "ImageReader | None" = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template
        self._special_tokens = special_tokens
        self._max_model_len = max_model_len
        self._vocab_size = tokenizer.get_vocab_size()
        self._longest_token = max(len(token.encode()) for token in tokenizer.get_vocab())
        self._knows_developer = "developer" in chat_template
        self._reader = reader
        self._wants_parts = reader is not None and not self._writes_texts()

    def render(
        self, request: ChatRequest, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The conversation as the model reads it.

        messages, tools: as the template wants them. Raises InvalidRequest when it refuses them.
        """
        self._refuse_hopeless(sum(_size(message.get("content", "")) for message in messages), "messages")
        if not self._knows_developer:
            messages = [_as_system(message) for message in messages]
        if self._wants_parts:
            messages = [_in_parts(message) for message in messages]
        try:
            return render_messages(
                [_for_template(message) for message in messages],
                self._template,
                tools=[*map(dict, tools)] or None,
                add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
                continue_final_message=request.continue_final_message,
                **{**request.template_kwargs, **self._special_tokens},
            )
        except (TemplateError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), "it cannot be rendered")
            raise InvalidRequest(f"The model's chat template refuses these messages: {reason}.", "messages") from error

    def chat(
        self, request: ChatRequest, text: str, grammar: Grammar | None = None, images: "Sequence[Image]" = ()
    ) -> Prompt:
        """text: as `render` gives it. Raises InvalidRequest when the context is too short for it."""
        self._check_token_ids(request.sampling)
        token_ids, seen = self._read(text, images)
        max_tokens = self._max_tokens(len(token_ids), request.max_tokens, "messages")
        return Prompt(token_ids, max_tokens, request.sampling, grammar, request.cache_salt, images=seen)

    def _read(self, text: str, images: "Sequence[Image]") -> tuple[list[int], PromptImages | None]:
        if self._reader is not None:
            self._reader.check_marks(text, len(images))
            if images:
                return self._reader.read(text, images)
        return self._encode(text, add_special_tokens=False), None

    def _writes_texts(self) -> bool:
        """Templates of image-text models may know contents as lists of parts only, and leave texts out silently."""
        try:
            return _PROBE in render_messages([{"role": "user", "content": _PROBE}], self._template)
        except (TemplateError, ValueError, TypeError):
            return False

    def completion(self, request: CompletionRequest, grammar: Grammar | None = None) -> list[Prompt]:
        """One prompt each. Raises InvalidRequest, as `chat` does."""
        self._check_token_ids(request.sampling)
        wanted = request.sampling.top_logprobs if request.echo else None
        prompts = []
        for prompt in request.prompts:
            token_ids = self._completion_ids(prompt, request.suffix)
            # A prompt that is only echoed needs one step, too: its own log-probabilities come with it.
            asked = None if request.max_tokens is None else max(1, request.max_tokens)
            max_tokens = self._max_tokens(len(token_ids), asked, "prompt")
            prompts.append(Prompt(token_ids, max_tokens, request.sampling, grammar, request.cache_salt, wanted))
        return prompts

    def _completion_ids(self, prompt: str | Sequence[int], suffix: str | None) -> list[int]:
        if isinstance(prompt, str):
            self._refuse_hopeless(len(prompt.encode()), "prompt")
            if suffix is not None:
                return self._encode(self._fill_in_the_middle(prompt, suffix), add_special_tokens=False)
            token_ids = self._encode(prompt, add_special_tokens=True)
            if not token_ids:
                raise InvalidRequest("'prompt' is empty. Send a text or token ids.", "prompt", "invalid_value")
            return token_ids
        if suffix is not None:
            raise InvalidRequest("'suffix' needs a prompt that is text, not token ids.", "suffix", "invalid_value")
        if any(not 0 <= token < self._vocab_size for token in prompt):
            message = f"'prompt' has token ids that the model does not know; they go from 0 to {self._vocab_size - 1}."
            raise InvalidRequest(message, "prompt", "invalid_value")
        return list(prompt)

    def _fill_in_the_middle(self, prompt: str, suffix: str) -> str:
        """Prefix, suffix, middle (Bavarian et al., 2022), for tokenizers that have the marks for it."""
        for prefix_mark, suffix_mark, middle_mark in _FILL_IN_MARKS:
            if all(self._tokenizer.token_to_id(mark) is not None for mark in (prefix_mark, suffix_mark, middle_mark)):
                return f"{prefix_mark}{prompt}{suffix_mark}{suffix}{middle_mark}"
        message = "'suffix' is not supported by this model: its tokenizer has no marks for a gap. Leave it out."
        raise InvalidRequest(message, "suffix", "unsupported_parameter")

    def _refuse_hopeless(self, size: int, param: str) -> None:
        """Text that cannot fit however well it tokenizes is refused before the time is spent on tokenizing it."""
        if size > self._max_model_len * self._longest_token:
            raise context_length_exceeded(self._max_model_len, f"your {param} are {size} bytes long", param)

    def _check_token_ids(self, sampling: Sampling) -> None:
        """An id beyond the vocabulary is a mistake: nothing would come of it."""
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            if any(not 0 <= id < self._vocab_size for id in ids):
                message = f"'{name}' names a token the model does not have; ids go from 0 to {self._vocab_size - 1}."
                raise InvalidRequest(message, name, "invalid_value")

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _max_tokens(self, prompt_tokens: int, asked: int | None, param: str) -> int:
        room = self._max_model_len - prompt_tokens
        if room < 1 or (asked or 1) > room:
            wanted = f" and {asked} tokens for the completion" if asked else ""
            raise context_length_exceeded(
                self._max_model_len, f"you asked for {prompt_tokens} tokens in the {param}{wanted}", param
            )
        return asked or room


def render_messages(messages: list[dict[str, Any]], chat_template: str, **variables: Any) -> str:
    """Raises TemplateError, ValueError or TypeError, whatever the template makes of them."""
    # Declared to be a text, but is the texts and their spans.
    rendered: Any = render_jinja_template([messages], chat_template=chat_template, **variables)
    return str(rendered[0][0])


def _size(content: object) -> int:
    """Bytes of text."""
    if isinstance(content, list):
        return sum(_size(part.get("text", "")) for part in content)
    return len(str(content).encode())


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """A template is told where an image stands, and no more."""
    if not isinstance(content := message.get("content"), list):
        return message
    return {**message, "content": [{"type": "image"} if part["type"] == "image" else part for part in content]}


_PROBE = "Is this written?"

_FILL_IN_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


def context_length_exceeded(max_model_len: int, asked: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model's maximum context length is {max_model_len} tokens. However, {asked}. "
        f"Shorten the {param} or lower the number of tokens to generate.",
        param,
        "context_length_exceeded",
    )


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message
