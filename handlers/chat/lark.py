"""Grammars as text, in the dialect of Lark that llguidance reads (its docs/syntax.md)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llguidance import regex_to_lark

from handlers.chat import schemas
from handlers.chat.reasoning import ReasoningFormat
from handlers.chat.types import OutputFormat
from handlers.errors import InvalidRequest

MAX_TEXT = 64 * 1024
MAX_REGEX = 4_000
MAX_CHOICES = 1_000

FREE_TEXT = "TEXT: /(.|\\n)*/"
_USER = "user"


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules that say what `answer` is. user: the caller's own grammar, which they refer to as `@user`."""

    lines: Sequence[str]
    user: str | None = None

    def render(self) -> str:
        """The grammar as llguidance takes it."""
        text = "\n".join(dict.fromkeys(self.lines))
        if self.user is None:
            return text
        return json.dumps({"grammars": [{"lark_grammar": text}, {"name": _USER, "lark_grammar": self.user}]})


@dataclass(frozen=True, slots=True)
class Literals:
    """How a text is written in a grammar. special: the ids of tokens that have no text of their own."""

    special: Mapping[str, int] = field(default_factory=dict)

    def exactly(self, text: str) -> str:
        if not text:
            return ""
        return f"<[{self.special[text]}]>" if text in self.special else quote(text)

    def after_text(self, rule: str, marker: str) -> list[str]:
        """The rule that takes any text up to and with the first `marker`, be it one token or spelled out."""
        spelled = f"[lazy]: TEXT {quote(marker)}"
        if marker not in self.special:
            return [rule + spelled]
        return [f"{rule}: TEXT {self.exactly(marker)} | {rule}_spelled", f"{rule}_spelled{spelled}"]


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def output_rules(output: OutputFormat) -> Rules:
    """Raises InvalidRequest for a value that is no such thing or is too large."""
    match output.kind:
        case "json_object":
            return Rules([f"answer: %json {schemas.write({'type': 'object'}, output.param)}"])
        case "json_schema":
            return Rules([f"answer: %json {schemas.write(output.value, output.param)}"])
        case "regex":
            return Rules(["answer: ANSWER", f"ANSWER: /{_regex(_text(output, MAX_REGEX))}/"])
        case "choice":
            return Rules([f"answer: {' | '.join(map(quote, _choices(output)))}"])
        case "grammar":
            return Rules([f"answer: @{_USER}"], _text(output, MAX_TEXT))


def thinking_rules(rules: Rules, thinking: ReasoningFormat | None, opened: bool, literals: Literals) -> Rules:
    """`start`: the answer, after the model's reasoning if it has any. opened: the prompt ends within the reasoning."""
    if thinking is None:
        return Rules(["start: answer", *rules.lines], rules.user)
    lines = [
        "start: thought answer" if opened else f"start: answer | {literals.exactly(thinking.opener)} thought answer",
        "thought: thinking BLANKS",
        "BLANKS: /\\s{0,4}/",
        *literals.after_text("thinking", thinking.closer),
        FREE_TEXT,
    ]
    return Rules([*lines, *rules.lines], rules.user)


def _text(output: OutputFormat, limit: int) -> str:
    if not isinstance(output.value, str) or not output.value.strip() or not _encodable(output.value):
        raise InvalidRequest(f"`{output.kind}` takes a text that is not empty.", output.param, "invalid_value")
    if len(output.value.encode()) > limit:
        raise InvalidRequest(f"`{output.kind}` is longer than {limit} bytes.", output.param, "invalid_value")
    return output.value


def _choices(output: OutputFormat) -> list[str]:
    choices = output.value
    if not isinstance(choices, list | tuple) or not choices or len(choices) > MAX_CHOICES:
        raise InvalidRequest(f"`choice` takes a list of 1 to {MAX_CHOICES} texts.", output.param, "invalid_value")
    if not all(isinstance(choice, str) and choice and _encodable(choice) for choice in choices):
        raise InvalidRequest("`choice` takes texts that are not empty.", output.param, "invalid_value")
    if sum(map(len, choices)) > MAX_TEXT:
        raise InvalidRequest(f"`choice` is longer than {MAX_TEXT} characters.", output.param, "invalid_value")
    return list(choices)


def _encodable(text: str) -> bool:
    """Half of a surrogate pair has no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _regex(pattern: str) -> str:
    """The whole answer is matched, which anchors say again and the library has no word for."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return regex_to_lark(pattern.replace("\n", "\\n"), "")
