"""Grammars over one model's tokens, by llguidance (https://github.com/guidance-ai/llguidance)."""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from handlers.chat import lark, schemas
from handlers.chat.constraints import ConstraintError, Grammar
from handlers.chat.reasoning import ReasoningFormat
from handlers.chat.tools.formats import ToolFormat
from handlers.chat.tools.grammar import Signature, tool_rules
from handlers.chat.types import OutputFormat, Tool, ToolChoice
from handlers.errors import InvalidRequest

_CACHED = 32
_CACHED_VERDICTS = 512
_LIMITS = LLParserLimits(
    # Half of what the library allows or less: a mask takes 0.1 s at worst, a grammar's states 50 MB.
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=25_000,
    verbose_errors=False,
)


class GrammarCompiler:
    """Compiles what callers ask for; grammars used lately are kept. Used from one thread, not the event loop's."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        """vocab_size: the width of the model's logits, which may exceed the tokenizer's vocabulary."""
        self._source = tokenizer
        self._eos = list(eos_token_ids)
        self._vocab_size = vocab_size
        self._literals = lark.Literals(_textless(tokenizer))
        self._compiled = lru_cache(_CACHED)(self._compile)
        self._verdict = lru_cache(_CACHED_VERDICTS)(self._validate)

    def compile(
        self, output: OutputFormat, thinking: ReasoningFormat | None = None, thinking_opened: bool = False
    ) -> Grammar:
        """The whole answer is `output`, after the model's reasoning if it has any.

        thinking_opened: the prompt ends within the reasoning. Raises InvalidRequest, with the parameter and the keyword
        at fault, for what cannot be followed.
        """
        rules = lark.thinking_rules(lark.output_rules(output), thinking, thinking_opened, self._literals)
        return self._compiled(rules.render(), output.param)

    def compile_tools(
        self,
        form: ToolFormat,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool = True,
        output: OutputFormat | None = None,
        thinking: ReasoningFormat | None = None,
        thinking_opened: bool = False,
    ) -> Grammar:
        """Calls of those of `tools` that `choice` names, in the words of `form`; not for mode `none`.

        With mode `auto` the answer is free text, or `output` if given, and from a call's first marker on it follows the
        call's grammar. parallel: whether there may be several calls. Arguments follow the tool's schema; that of a tool
        which is not strict is left aside if it cannot be followed. Raises InvalidRequest.
        """
        signatures = [
            self._signature(tool, f"tools[{i}].function.parameters")
            for i, tool in enumerate(tools)
            if not choice.names or tool.name in choice.names
        ]
        if not signatures:
            raise InvalidRequest("No tool is called what `tool_choice` says.", "tool_choice", "invalid_value")
        answer = lark.output_rules(output) if output and choice.mode == "auto" else None
        rules = tool_rules(form, signatures, choice.mode == "required", parallel, answer, self._literals)
        rules = lark.thinking_rules(rules, thinking, thinking_opened, self._literals)
        return self._compiled(rules.render(), "tools")

    def _signature(self, tool: Tool, param: str) -> Signature:
        try:
            text = schemas.write({"type": "object", **tool.parameters}, param)
            self._check(text, param)
        except InvalidRequest:
            if tool.strict:
                raise
            text = schemas.write({"type": "object"}, param)
        return Signature(tool.name, text)

    def _check(self, schema: str, param: str) -> None:
        if reason := self._verdict(f"start: %json {schema}"):
            raise _refusal(reason, param)

    def _validate(self, grammar: str) -> str:
        return LLMatcher.validate_grammar(grammar, self._tokenizer, limits=_LIMITS)

    def _compile(self, grammar: str, param: str) -> "_LLGrammar":
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        compiled = _LLGrammar(matcher, self._tokenizer.vocab_size)
        compiled.check(param)
        return compiled

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Takes up to a second, so it waits for the first request that needs it."""
        size = max(self._vocab_size, self._source.get_vocab_size())
        try:
            return LLTokenizer(self._source.to_str(), n_vocab=size, eos_token=self._eos)
        except ValueError as error:
            raise InvalidRequest(
                "This model's tokenizer cannot be held to a grammar; ask for plain text.", "response_format"
            ) from error


class _LLGrammar:
    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def start(self) -> "_LLConstraint":
        return _LLConstraint(self._matcher.deep_copy(), self._vocab_size)

    def check(self, param: str) -> None:
        """Raises InvalidRequest if not even one answer fits, or finding the first token costs too much."""
        try:
            self.start().forbidden()
        except ConstraintError as error:
            raise _refusal(str(error), param) from error


class _LLConstraint:
    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def mask_logits(self, logits: torch.Tensor) -> None:
        forbidden = torch.from_numpy(self.forbidden()[: logits.shape[-1]]).view(torch.bool)
        logits.masked_fill_(forbidden.to(logits.device), float("-inf"))

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ConstraintError(self._matcher.get_error())

    def forbidden(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """[vocabulary, rounded up to 32], 1 for each token that may not come next."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise ConstraintError(self._matcher.get_error())
        return np.unpackbits(~self._bits.view(np.uint8), bitorder="little")


def _textless(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens that llguidance knows by id alone: special ones, and whatever was added in angle brackets."""
    added = [(id, token.content, token.special) for id, token in tokenizer.get_added_tokens_decoder().items()]
    return {text: id for id, text, special in added if special or (text.startswith("<") and text.endswith(">"))}


def _refusal(reason: str, param: str) -> InvalidRequest:
    reason = " ".join(reason.replace("<non-verbose/>", "").split())
    return InvalidRequest(f"This {_thing(param)} cannot be followed: {reason[:500]}", param, "invalid_value")


def _thing(param: str) -> str:
    return "schema" if param.endswith("parameters") else "output format"
