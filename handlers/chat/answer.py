"""One answer as its tokens come: text, reasoning, tool calls and log-probabilities, ready to be sent."""

from collections.abc import Sequence

from handlers.chat.engine import Generated
from handlers.chat.reasoning import ReasoningSplitter
from handlers.chat.stops import StopMatcher
from handlers.chat.text import Detokenizer, TokenTexts
from handlers.chat.tools.parser import ToolParser
from handlers.chat.types import Delta, TokenLogprob, ToolCallDelta


class Answer:
    """Turns the tokens of answer `index` into deltas."""

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        *,
        texts: TokenTexts | None = None,
        splitter: ReasoningSplitter | None = None,
        parser: ToolParser | None = None,
        echo: str = "",
        is_only_echo: bool = False,
    ) -> None:
        """texts: given when log-probabilities are wanted. splitter: when the model thinks aloud. parser: when it may
        call tools. echo: the prompt, if the answer is to begin with it. is_only_echo: nothing else is wanted.
        """
        self.index = index
        self.tokens = 0
        self.reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._stops = stops
        self._texts = texts
        self._splitter = splitter
        self._parser = parser
        self._echo = echo
        self._is_only_echo = is_only_echo

    def feed(self, tokens: Sequence[Generated]) -> Delta:
        """What these tokens add. After a stop text, the last delta: nothing that follows is wanted."""
        delta = _Gathered(self._echo)
        self._echo = ""
        for token in tokens:
            if self._texts is not None:
                delta.logprobs += map(self._texts.logprob, token.prompt)
            if self._is_only_echo:
                break
            self.tokens += 1
            self._read(self._stops.feed(self._detokenizer.feed(token.choice.token)), delta)
            if self._texts is not None:
                delta.logprobs.append(self._texts.logprob(token.choice))
            if self._stops.stopped:
                return self._end(delta, "stop")
        return self._delta(delta)

    def end(self, finish_reason: str) -> Delta:
        """What was held back, and why it ended."""
        delta = _Gathered()
        self._read(self._stops.feed(self._detokenizer.flush()) + self._stops.flush(), delta)
        return self._end(delta, "stop" if self._stops.stopped else finish_reason)

    def _read(self, text: str, delta: "_Gathered") -> None:
        """Sort the text into reasoning, tool calls and the rest."""
        if self._splitter is not None:
            reasoning, text = self._splitter.feed(text)
            delta.reasoning += reasoning
            self.reasoning_tokens += bool(reasoning)
        self._parse(text, delta)

    def _parse(self, text: str, delta: "_Gathered") -> None:
        if self._parser is not None:
            text, calls = self._parser.feed(text)
            delta.tool_calls += calls
        delta.text += text

    def _end(self, delta: "_Gathered", finish_reason: str) -> Delta:
        if self._splitter is not None:
            reasoning, text = self._splitter.flush()
            delta.reasoning += reasoning
            self._parse(text, delta)
        if self._parser is not None:
            text, calls = self._parser.flush()
            delta.text += text
            delta.tool_calls += calls
            if self._parser.calls and finish_reason == "stop":
                finish_reason = "tool_calls"
        return self._delta(delta, finish_reason)

    def _delta(self, gathered: "_Gathered", finish_reason: str | None = None) -> Delta:
        return Delta(
            gathered.text,
            self.tokens,
            finish_reason,
            self.index,
            gathered.reasoning,
            tuple(gathered.tool_calls),
            tuple(gathered.logprobs),
        )


class _Gathered:
    """A delta in the making."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.reasoning = ""
        self.tool_calls: list[ToolCallDelta] = []
        self.logprobs: list[TokenLogprob] = []
