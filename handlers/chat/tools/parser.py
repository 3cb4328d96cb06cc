"""Tool calls in an answer that arrives in pieces."""

import re
import secrets
from collections.abc import Callable, Collection

from handlers.chat.reasoning import held_back
from handlers.chat.tools.formats import ToolFormat
from handlers.chat.tools.scanner import CallScanner, skip_blanks
from handlers.chat.types import ToolCallDelta


class ToolParser:
    """Tells calls from text. What begins like a call and is none comes back as text, so nothing is lost but the marks
    and blanks around calls. Takes time linear in the length of the answer, whatever it is: nothing is read twice.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], new_id: Callable[[], str] | None = None) -> None:
        """names: the tools that may be called; a call of any other is text. new_id: makes the ids of the calls."""
        self.calls = 0
        self._form = form
        self._names = frozenset(names)
        self._new_id = new_id or (_short_id if form.short_ids else _long_id)
        self._marker = form.opener or form.optional_opener
        self._opening = _opening(self._marker, form.listed)
        self._pending = ""
        self._held: list[str] = []
        self._in_list = self._closed = False
        self._scanner: CallScanner | None = None
        self._announced = False
        self._text: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._state: Callable[[str, int], int | None] = self._plain if form.opener else self._start

    def feed(self, piece: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """(text, calls) that are known by now. `calls` counts the calls that have begun."""
        if not self._pending and self._state == self._plain and self._marker[0] not in piece:
            return piece, ()  # most of any answer
        text, at = self._pending + piece, 0
        self._pending = ""
        while at < len(text):
            reached = self._state(text, at)
            if reached is None:
                self._pending = text[at:]
                break
            at = reached
        return self._take()

    def flush(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """What was held back when the answer ends there. A call that was cut stays cut."""
        left = "".join(self._held) + (self._scanner.raw if self._scanner else "") + self._pending
        if not self.calls or not self._form.closer.startswith(left.strip()):
            self._text.append(left)
        self._held.clear()
        self._pending, self._scanner = "", None
        return self._take()

    def _take(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if not self._text and not self._deltas:
            return "", ()
        text, deltas = "".join(self._text), tuple(self._deltas)
        self._text.clear()
        self._deltas.clear()
        return text, deltas

    # Each state reads on from `at` and says how far it came, or None if it needs more text to decide.

    def _start(self, text: str, at: int) -> int | None:
        """The beginning of an answer whose call is told by its brace."""
        at = self._hold_blanks(text, at)
        return at if at == len(text) else self._opened_or_marked(text, at)

    def _plain(self, text: str, at: int) -> int | None:
        found = self._opening.search(text, at)
        if found is not None:
            self._text.append(text[at : found.start()])
            return self._open(found.start())
        end = len(text) - held_back(text, self._marker, at)
        self._text.append(text[at:end])
        self._pending = text[end:]
        return len(text)

    def _opened(self, text: str, at: int) -> int | None:
        """Behind an opener."""
        at = self._hold_blanks(text, at)
        if at == len(text):
            return at
        if self._form.listed and not self._in_list:
            if text[at] != "[":
                return self._give_up(at)
            self._in_list = True
            self._held.append("[")
            return at + 1
        return self._begin_call(at) if text[at] == "{" else self._give_up(at)

    def _call(self, text: str, at: int) -> int | None:
        assert self._scanner is not None
        at = self._scanner.feed(text, at)
        self._announce(self._scanner)
        if self._scanner.failed:
            self._held.append(self._scanner.raw)
            return self._give_up(at)
        if self._scanner.done:
            self._scanner, self._closed = None, False
            self._state = self._after
        return at

    def _after(self, text: str, at: int) -> int | None:
        """Behind a call: its closer, a separator or the next opener; anything else is text."""
        at = self._hold_blanks(text, at)
        if at == len(text):
            return at
        if text[at] == ("," if self._in_list else ";" if not self._form.closer else ""):
            self._held.append(text[at])
            self._state = self._opened
            return at + 1
        if not self._closed and self._form.closer and (met := _meets(text, at, self._form.closer)) is not False:
            return self._close(at) if met else None
        if not self._in_list and (met := _meets(text, at, self._marker)) is not False:
            return self._open(at) if met else None
        return self._give_up(at)

    def _opened_or_marked(self, text: str, at: int) -> int | None:
        if text[at] == "{":
            return self._begin_call(at)
        met = _meets(text, at, self._marker) if self._marker else False
        if met is False:
            return self._give_up(at)
        return self._open(at) if met else None

    def _open(self, at: int) -> int:
        if self._state == self._after:
            self._held.clear()
        self._held.append(self._marker)
        self._in_list = False
        self._state = self._opened
        return at + len(self._marker)

    def _close(self, at: int) -> int:
        self._held.clear()
        self._closed, self._in_list = True, False
        return at + len(self._form.closer)

    def _begin_call(self, at: int) -> int:
        self._scanner, self._announced = CallScanner(self._names), False
        self._state = self._call
        return at

    def _announce(self, scanner: CallScanner) -> None:
        """Give out what the scanner knows of the call. It begins only when its arguments do, or at its end."""
        arguments = scanner.take_arguments()
        if not arguments:
            return
        if self._announced:
            self._deltas.append(ToolCallDelta(self.calls - 1, arguments=arguments))
            return
        self._deltas.append(ToolCallDelta(self.calls, self._new_id(), scanner.name, arguments))
        self._announced = True
        self.calls += 1
        self._held.clear()

    def _give_up(self, at: int) -> int:
        """What was held is text after all."""
        self._text.extend(self._held)
        self._held.clear()
        self._scanner, self._in_list = None, False
        self._state = self._plain if self._marker else self._rest
        return at

    def _rest(self, text: str, at: int) -> int | None:
        self._text.append(text[at:])
        return len(text)

    def _hold_blanks(self, text: str, at: int) -> int:
        end = skip_blanks(text, at)
        if end > at:
            self._held.append(text[at:end])
        return end


def _opening(marker: str, listed: bool) -> re.Pattern[str]:
    """The marker, unless something else than a call follows already: it is text then, found to be so in one go."""
    bracket = r"(?:\[\s*+)?" if listed else ""
    return re.compile(rf"{re.escape(marker)}(?=\s*+{bracket}(?:\{{|\Z))")


def _meets(text: str, at: int, marker: str) -> bool | None:
    """Whether `marker` stands at `at`; None if the text ends before that is known."""
    if not marker or text.startswith(marker, at):
        return bool(marker)
    return None if len(text) - at < len(marker) and marker.startswith(text[at:]) else False


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Nine letters or digits: Mistral's templates refuse anything else."""
    return secrets.token_hex(5)[:9]
