"""What a request needs before it can be generated from: its prompts, and what makes text of the tokens that come."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from handlers.chat.answer import Answer
from handlers.chat.constraints import Grammar
from handlers.chat.engine import Prompt
from handlers.chat.grammar import GrammarCompiler
from handlers.chat.images import decode_all
from handlers.chat.loading import ChatModel
from handlers.chat.prompt import PromptBuilder
from handlers.chat.reasoning import ReasoningSplitter, reasoning_format
from handlers.chat.stops import StopMatcher
from handlers.chat.text import Detokenizer, TokenTexts
from handlers.chat.tools import formats, history
from handlers.chat.tools.parser import ToolParser
from handlers.chat.types import IMAGE_LIMITS, ChatRequest, CompletionRequest, ImageLimits, Sampling, Tool

NewAnswer = Callable[[int], Answer]


class Preparation:
    """Called in a worker thread: templates, tokenizing and grammars take their time."""

    def __init__(self, loaded: ChatModel, image_limits: ImageLimits = IMAGE_LIMITS) -> None:
        """image_limits: for models that read images."""
        template, tokenizer = loaded.chat_template, loaded.tokenizer
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)
        self._image_limits = image_limits
        self._prompts = PromptBuilder(tokenizer, template, loaded.special_tokens, loaded.max_model_len, loaded.reader)
        self._grammars = GrammarCompiler(tokenizer, loaded.eos_token_ids, loaded.model.vocab_size)
        self._thinking = reasoning_format(template)
        self._tool_format = formats.choose(template, tokenizer.get_vocab())
        self._knows_tools = formats.knows_tools(template)

    def chat(self, request: ChatRequest) -> tuple[Prompt, NewAnswer]:
        """The prompt, and what is called with the number of an answer to make its reader. Raises InvalidRequest."""
        text = self._render(request)
        opened = self._thinking is not None and self._thinking.opened_by(text)
        images = decode_all(request.images, self._image_limits)
        prompt = self._prompts.chat(request, text, self._grammar(request, opened), images)
        calls = _callable_tools(request)
        markers = [
            *(self._thinking.markers if self._thinking else ()),
            *(self._tool_format.markers if calls else ()),
        ]

        def new_answer(index: int) -> Answer:
            return Answer(
                index,
                Detokenizer(self._tokenizer, markers),
                StopMatcher(request.stop),
                texts=self._texts_for(request.sampling),
                splitter=ReasoningSplitter(self._thinking, opened) if self._thinking else None,
                parser=ToolParser(self._tool_format, [tool.name for tool in calls]) if calls else None,
            )

        return prompt, new_answer

    def completion(self, request: CompletionRequest) -> tuple[list[Prompt], NewAnswer]:
        """As `chat`, with a prompt for each of the request's."""
        a_prompt = request.best_of or request.n
        if a_prompt > request.n and request.sampling.top_logprobs is None:
            request = replace(request, sampling=replace(request.sampling, top_logprobs=0))
        grammar = self._grammars.compile(request.output_format) if request.output_format else None
        prompts = self._prompts.completion(request, grammar)

        def new_answer(index: int) -> Answer:
            return Answer(
                index,
                Detokenizer(self._tokenizer),
                StopMatcher(request.stop),
                texts=self._texts_for(request.sampling),
                echo=self._text(prompts[index // a_prompt]) if request.echo else "",
                is_only_echo=request.max_tokens == 0,
            )

        return prompts, new_answer

    def _render(self, request: ChatRequest) -> str:
        tools = () if request.tool_choice.mode == "none" else request.tools
        if self._knows_tools:
            messages = history.for_template(request.messages, self._tool_format)
            return self._prompts.render(request, messages, [_as_openai(tool) for tool in tools])
        return self._prompts.render(request, history.as_text(request.messages, self._tool_format, tools))

    def _grammar(self, request: ChatRequest, opened: bool) -> Grammar | None:
        """opened: the prompt ends within the model's reasoning."""
        if _callable_tools(request):
            return self._grammars.compile_tools(
                self._tool_format,
                request.tools,
                request.tool_choice,
                request.parallel_tool_calls and not _is_named(request),
                request.output_format,
                self._thinking,
                opened,
            )
        if request.output_format is not None:
            return self._grammars.compile(request.output_format, self._thinking, opened)
        return None

    def _texts_for(self, sampling: Sampling) -> TokenTexts | None:
        return None if sampling.top_logprobs is None else self._texts

    def _text(self, prompt: Prompt) -> str:
        text: str = self._tokenizer.decode(list(prompt.token_ids), skip_special_tokens=True)
        return text


def _callable_tools(request: ChatRequest) -> list[Tool]:
    if request.tool_choice.mode == "none":
        return []
    names = request.tool_choice.names
    return [tool for tool in request.tools if not names or tool.name in names]


def _is_named(request: ChatRequest) -> bool:
    """A tool that is asked for by name is called once, as OpenAI does it."""
    return request.tool_choice.mode == "required" and len(request.tool_choice.names) == 1


def _as_openai(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
