"""One tool call, `{"name": …, "arguments": {…}}`, read from a text that arrives in pieces."""

import json
import re
from collections.abc import Callable, Collection

MAX_DEPTH = 64

_ARGUMENTS = ("arguments", "parameters")
_BLANKS = " \t\r\n"
_SOME_BLANKS = re.compile(f"[{_BLANKS}]*")
# Nothing in these can match in two ways, and what has matched is never given back: they take linear time.
_STRING = r'(?:[^"\\]++|\\.)*+'
_REST_OF_STRING = re.compile(rf'({_STRING})("?)', re.DOTALL)
_SYMBOL = re.compile(rf'[{{}}\[\]]|"({_STRING})("?)', re.DOTALL)
_SCALAR = re.compile(r"[-+.\w]*")
_CLOSER = {"{": "}", "[": "]"}


class Value:
    """Finds the end of a JSON value; brackets and strings are watched, the rest is taken as it comes."""

    def __init__(self) -> None:
        self.done = self.failed = False
        self._open: list[str] = []
        self._in_string = self._escaped = self._in_scalar = False

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at` and says where it stopped: at the end of the text or of the value, or at a mistake."""
        if self._in_string:
            at = self._string(text, at)
        elif not self._open:
            at = self._begin(text, at)
        if at == len(text) or self.done or self.failed:
            return at
        return self._structure(text, at)

    def _begin(self, text: str, at: int) -> int:
        """The whole of a number or word; anything else has a symbol first."""
        end = _skip(_SCALAR, text, at)
        self._in_scalar |= end > at
        if end < len(text):
            self.done = self._in_scalar
            self.failed = not self.done and text[end] not in '"{['
        return end

    def _string(self, text: str, at: int) -> int:
        rest = _REST_OF_STRING.match(text, at + self._escaped)
        assert rest is not None
        return self._end_string(text, rest)

    def _end_string(self, text: str, string: re.Match[str]) -> int:
        """The string has ended, or goes on in the next piece, maybe behind half an escape."""
        self._in_string = not string[string.re.groups]
        self._escaped = self._in_string and string.end() < len(text)
        self.done = not self._in_string and not self._open
        return len(text) if self._in_string else string.end()

    def _structure(self, text: str, at: int) -> int:
        for found in _SYMBOL.finditer(text, at):
            symbol = text[found.start()]
            if symbol == '"':
                self._end_string(text, found)
            elif symbol in _CLOSER:
                self._open.append(_CLOSER[symbol])
                self.failed = len(self._open) > MAX_DEPTH
            elif symbol == self._open[-1]:
                self._open.pop()
                self.done = not self._open
            else:
                self.failed = True
            if self.failed:
                return found.start()
            if self.done:
                return found.end()
        return len(text)


class CallScanner:
    """Name and arguments of one call; every character is looked at once.

    Arguments are given out as they come if the name came first, else at the end.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name: str | None = None
        self.done = self.failed = False
        self._names = names
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._has_arguments = self._streaming = False
        self._key: str | None = None
        self._value = Value()
        self._text: list[str] = []
        self._state: Callable[[str, int], int] = self._brace

    @property
    def raw(self) -> str:
        """What was read and not given out: the text of a call that failed."""
        return "".join(self._raw)

    def take_arguments(self) -> str:
        """The arguments that have come since the last time; they wait for the name."""
        if self.name is None or not (self._streaming or self.done):
            return ""
        arguments = "".join(self._arguments)
        self._arguments.clear()
        return arguments

    def feed(self, text: str, at: int) -> int:
        """Reads on from `at` and says where it stopped: at the end of the text or of the call, or at a mistake."""
        while at < len(text) and not (self.done or self.failed):
            given_out = self._streaming and self._state == self._read_arguments
            start, at = at, self._state(text, at)
            if given_out:
                self._raw.clear()
            else:
                self._raw.append(text[start:at])
        return at

    def _brace(self, text: str, at: int) -> int:
        return self._expect(text, at, {"{": self._first_key})

    def _first_key(self, text: str, at: int) -> int:
        at = skip_blanks(text, at)
        return self._finish(text, at) if text[at : at + 1] == "}" else self._next_key(text, at)

    def _next_key(self, text: str, at: int) -> int:
        return self._expect(text, at, {'"': self._read_key}, consume=False)

    def _read_key(self, text: str, at: int) -> int:
        at = self._read(text, at)
        if self._value.done:
            self._key = self._string_read()
            self._state = self._colon
        return at

    def _colon(self, text: str, at: int) -> int:
        return self._expect(text, at, {":": self._before_value})

    def _before_value(self, text: str, at: int) -> int:
        at = skip_blanks(text, at)
        if at == len(text):
            return at
        if self._key in _ARGUMENTS and not self._has_arguments:
            self._has_arguments, self.failed = True, text[at] != "{"
            self._streaming = self.name is not None and not self.failed
            self._state = self._read_arguments
        else:
            self._state = self._read_value
        return at

    def _read_arguments(self, text: str, at: int) -> int:
        start, at = at, self._value.feed(text, at)
        self._arguments.append(text[start:at])
        self.failed = self._value.failed
        if self._value.done:
            self._after_value()
        return at

    def _read_value(self, text: str, at: int) -> int:
        at = self._read(text, at)
        if self._value.done:
            if self._key == "name" and self.name is None:
                self.name = self._named(self._string_read())
            self._after_value()
        return at

    def _after_value(self) -> None:
        self._value, self._text = Value(), []
        self._state = self._next

    def _next(self, text: str, at: int) -> int:
        at = skip_blanks(text, at)
        if text[at : at + 1] == "}":
            return self._finish(text, at)
        return self._expect(text, at, {",": self._next_key})

    def _finish(self, text: str, at: int) -> int:
        self.failed = self.name is None
        self.done = not self.failed
        if self.done and not self._has_arguments:
            self._arguments.append("{}")
        return at + self.done

    def _expect(self, text: str, at: int, states: dict[str, Callable[[str, int], int]], consume: bool = True) -> int:
        at = skip_blanks(text, at)
        if at == len(text):
            return at
        state = states.get(text[at])
        self.failed = state is None
        self._state = state or self._state
        return at + (consume and not self.failed)

    def _read(self, text: str, at: int) -> int:
        start, at = at, self._value.feed(text, at)
        self._text.append(text[start:at])
        self.failed = self._value.failed
        return at

    def _string_read(self) -> str | None:
        """The string that the value is; None for anything else. Leaves room for the next value."""
        try:
            value = json.loads("".join(self._text))
        except ValueError:
            value = None
        self._value, self._text = Value(), []
        return value if isinstance(value, str) else None

    def _named(self, name: str | None) -> str | None:
        self.failed = name not in self._names
        return None if self.failed else name


def skip_blanks(text: str, at: int) -> int:
    """Where JSON's blanks end."""
    if at < len(text) and text[at] not in _BLANKS:
        return at  # as nearly everywhere, and four times as fast to find out
    return _skip(_SOME_BLANKS, text, at)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
