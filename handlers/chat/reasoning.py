"""Reasoning models think aloud between two markers; this tells their thoughts from their answer."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The texts that open and close the reasoning. In some vocabularies they are special tokens."""

    opener: str
    closer: str

    def opened_by(self, prompt: str) -> bool:
        """Whether the rendered prompt ends within the reasoning, so that the answer starts there."""
        return prompt.rstrip().endswith(self.opener)

    @property
    def markers(self) -> tuple[str, str]:
        """Special tokens of these names must be kept when the answer is turned into text."""
        return self.opener, self.closer


_State = Callable[[str], tuple[str, str]]

FORMATS = (
    ReasoningFormat("<think>", "</think>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<thinking>", "</thinking>"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<reasoning>", "</reasoning>"),
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
)


def reasoning_format(template: str | None) -> ReasoningFormat | None:
    """The one that the chat template speaks of."""
    return next((form for form in FORMATS if form.opener in (template or "") or form.closer in (template or "")), None)


class ReasoningSplitter:
    """Reasoning and answer of a text that arrives in pieces; the markers and the blanks beside them are dropped.

    Reasoning counts only at the beginning: a marker amid the answer is text. Takes time linear in the text.
    """

    def __init__(self, form: ReasoningFormat, opened: bool) -> None:
        self._form = form
        self._pending = ""
        self._blanks: list[str] = []
        self._feed: _State = self._within if opened else self._before
        self._at_start = opened

    def feed(self, piece: str) -> tuple[str, str]:
        """(reasoning, text) that are known by now."""
        return self._feed(piece)

    def flush(self) -> tuple[str, str]:
        """What was held back when the answer ends there."""
        pending, self._pending = self._pending, ""
        if self._feed == self._within:
            return pending, ""
        blanks = "" if self._feed == self._after else "".join(self._blanks)
        self._blanks.clear()
        return "", blanks + pending

    def _before(self, piece: str) -> tuple[str, str]:
        text = self._pending + piece
        stripped = text.lstrip()
        self._blanks.append(text[: len(text) - len(stripped)])
        self._pending = stripped
        if stripped.startswith(self._form.opener):
            return self._enter(self._within, stripped[len(self._form.opener) :])
        if self._form.opener.startswith(stripped):
            return "", ""
        return self._enter(self._text, "".join(self._blanks) + stripped)

    def _within(self, piece: str) -> tuple[str, str]:
        if not (self._pending or self._at_start) and self._form.closer[0] not in piece:
            return piece, ""
        text = self._pending + piece
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        thought, closer, rest = text.partition(self._form.closer)
        if closer:
            reasoning, answer = self._enter(self._after, rest)
            return thought + reasoning, answer
        keep = held_back(text, self._form.closer)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _after(self, piece: str) -> tuple[str, str]:
        text = piece.lstrip()
        return self._enter(self._text, text) if text else ("", "")

    def _text(self, piece: str) -> tuple[str, str]:
        return "", piece

    def _enter(self, state: _State, rest: str) -> tuple[str, str]:
        self._feed, self._pending = state, ""
        self._blanks.clear()
        self._at_start = state == self._within
        return state(rest)


def held_back(text: str, marker: str, start: int = 0) -> int:
    """Length of the end of `text` that `marker` begins with, and that is not all of it; not counting before `start`.

    marker: its first character comes only once in it, so that nothing but the last such character can begin one.
    """
    at = text.rfind(marker[0], max(start, len(text) - len(marker) + 1))
    return len(text) - at if at >= 0 and marker.startswith(text[at:]) else 0
