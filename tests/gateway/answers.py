"""Answers of every kind, as a handler would give them."""

import math

from handlers.chat.types import Alternative, Delta, TokenLogprob, ToolCallDelta

CALLS = (
    Delta("Let me see.", 3),
    Delta("", 5, tool_calls=(ToolCallDelta(0, "call_a", "get_weather"),)),
    Delta("", 7, tool_calls=(ToolCallDelta(0, arguments='{"city":'),)),
    Delta("", 9, tool_calls=(ToolCallDelta(0, arguments='"Zürich"}'),)),
    Delta("", 11, tool_calls=(ToolCallDelta(1, "call_b", "get_time", '{"zone"'),)),
    Delta("", 13, tool_calls=(ToolCallDelta(1, arguments=':"CET"}'),)),
    Delta("", 14, "tool_calls"),
)
"""A word, then two calls at once, their arguments in pieces."""

ONE_CALL = (*CALLS[1:4], Delta("", 10, "tool_calls"))

TWO = (
    Delta("No", 1, index=1),
    Delta("Yes", 1, index=0),
    Delta("!", 2, index=0),
    Delta("", 2, index=1),
    Delta("", 3, "stop", index=1),
    Delta(" Sure", 3, "stop", index=0),
)
"""Two answers, interleaved; the second begins and ends before the first."""

THOUGHTS = (
    Delta("", 1, reasoning="Hm. "),
    Delta("", 2, reasoning="4?"),
    Delta("Four", 3),
    Delta("", 4, "stop"),
)


def token(text: str, logprob: float | None, *top: tuple[str, float]) -> TokenLogprob:
    alternatives = tuple(Alternative(other, other.encode(), value) for other, value in top)
    return TokenLogprob(text, text.encode(), logprob, alternatives)


LIKELY = (
    Delta("Hi", 1, logprobs=(token("Hi", -0.5, ("Hi", -0.5), ("Yo", -1.5)),)),
    Delta("", 2, logprobs=(token(" ü", -2.0, (" you", -0.25), (" ü", -2.0)),)),
    Delta(" ü!", 3, "stop", logprobs=(token("!", -math.inf, (".", -0.125), ("?", math.nan)),)),
)
"""The second token's text comes with the third; the third was all but impossible."""
