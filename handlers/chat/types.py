"""What a generation is, apart from any wire format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen from the model's logits.

    temperature 0 is greedy. `seed` None draws a fresh one per request. top_k 0 and min_p 0 are off.
    frequency_penalty, presence_penalty: subtracted from the logits of tokens generated so far, as OpenAI defines it.
    repetition_penalty: divides (multiplies, if negative) the logits of tokens of the prompt and the answer; 1 is off.
    logit_bias: added to the logits, by token id.
    min_tokens: so many tokens before any of `eos` or `stop_token_ids` may end the answer.
    ignore_eos: only `max_tokens`, stop texts and `stop_token_ids` end the answer.
    top_logprobs: None for none, 0 for those of the chosen tokens, n for the n likeliest beside each.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. parameters: a JSON schema. strict: arguments must follow it to the letter."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """names: the tools that may be called; empty means all of them. One name with `required` forces that one."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the whole answer must be.

    kind `json_object`: any JSON object. `json_schema`: `value` is the schema. `regex`, `choice` (a list of texts) and
    `grammar` (Lark): the extensions of vLLM.
    param: the request's parameter that asked for it, for error messages.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    value: Any = None
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image in a message. data: its file, or that in base64. media_type: what it is said to be.

    param: where it stands in the request, for error messages.
    """

    data: bytes | str
    media_type: str
    param: str


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """max_bytes: of one file. max_pixels: of all images of a request together. max_images: of one request."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 33_000_000
    max_images: int = 16


IMAGE_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """messages: role, content and, as in OpenAI's format, `tool_calls` and `tool_call_id`. content is a text or, where
    there are images, a list of parts: `{"type": "text", "text": …}` and `{"type": "image", "image": ImageInput}`.

    max_tokens None: as many as the context has room for. n: answers to the same messages, which share one prefill.
    template_kwargs: handed to the model's chat template. continue_final_message: the answer goes on where the last
    message ends. cache_salt: prompts share cached prefixes only with prompts of the same salt.
    """

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    output_format: OutputFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    cache_salt: str = ""

    @property
    def images(self) -> list[ImageInput]:
        """In the order of the messages."""
        contents = (message.get("content") for message in self.messages)
        parts = (part for content in contents if isinstance(content, list) for part in content)
        return [part["image"] for part in parts if part["type"] == "image"]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """prompts: texts or token ids. Choices are numbered prompt by prompt, `n` of them each.

    max_tokens None: as many as the context has room for. best_of: so many are generated and the `n` likeliest returned.
    echo: the prompt comes first. suffix: what follows the gap to fill, for tokenizers that know how.
    """

    prompts: Sequence[str | Sequence[int]]
    max_tokens: int | None = 16
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    best_of: int | None = None
    echo: bool = False
    suffix: str | None = None
    output_format: OutputFormat | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have come. logprob: natural logarithm, of the model's own distribution (no temperature)."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that came, and the likeliest at its place. logprob None: the first token of an echoed prompt."""

    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. id and name come with the first piece of call `index`, arguments in pieces of JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer `index`. `completion_tokens` is that answer's running total.

    finish_reason: stop, length or tool_calls; set on the answer's last delta.
    """

    text: str
    completion_tokens: int
    finish_reason: str | None = None
    index: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
