"""Any text in the letters, digits and signs that an English voice can pronounce. Nothing in it is left out unsaid."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from anyascii import anyascii

from handlers.errors import InvalidRequest

# Longer numbers are card numbers and the like, which people read out digit by digit.
_MAX_DIGITS = 15

# The voice reads no more of a word that it does not know.
_MAX_LETTERS = 24

# It needs time with the cube of what is between two spaces: 200 signs take it 10 s.
_MAX_RUN = 40

# What the voice has words of its own for.
_READ_BY_VOICE = frozenset("’‘“”…—–€£¥₹₩¢°§¶±×÷½¼¾²³µ©→")

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "™": " trademark ",
        "®": " registered ",
        "‰": " per thousand ",
        "′": " prime ",
        "″": " double prime ",
        "⁄": "/",
        "−": " minus ",
        "•": ", ",
        "¿": " ",
        "¡": " ",
        "\U0001f3fb": " light skin tone ",
        "\U0001f3fc": " medium-light skin tone ",
        "\U0001f3fd": " medium skin tone ",
        "\U0001f3fe": " medium-dark skin tone ",
        "\U0001f3ff": " dark skin tone ",
    }
)

_ADDRESS = re.compile(r"(?:https?://|ftp://|www\.)[^\s<>\"]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.ASCII)
_ADDRESS_SIGNS: Mapping[str, str] = MappingProxyType(
    {
        ".": "dot",
        "/": "slash",
        "@": "at",
        "-": "dash",
        "_": "underscore",
        ":": "colon",
        "?": "question mark",
        "=": "equals",
        "&": "and",
        "#": "hash",
        "%": "percent",
        "+": "plus",
        "~": "tilde",
    }
)
_CURRENCIES: Mapping[str, str] = MappingProxyType(
    {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "₩": "won"}
)
# The voice passes these over in silence where they are not as it knows them; the order counts.
_REWRITTEN: Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = (
    (re.compile(r"([-=~<>*_#+])\1{2,}"), " "),  # a line drawn with signs
    (re.compile(r"(\d[\d,.]*) ?([$€£¥₹₩])(?!\d)"), r" \2\1"),
    (re.compile(r"([$€£¥₹₩]) ?(?=\d)"), r" \1"),
    (re.compile(r"[$€£¥₹₩](?!\d)"), lambda sign: f" {_CURRENCIES[sign.group()]} "),
    (re.compile("<"), " less than "),
    (re.compile(">"), " greater than "),
    (re.compile(r"(?<=[A-Za-z0-9]{2})\.(?=[a-z]{2})"), " dot "),
    # The voice would take `[text](/sounds/)` for an instruction, and not speak what is in the parentheses.
    (re.compile(r"\]\("), "] ("),
)
_NUMBER = re.compile(r"\d(?:[\d,.]*\d)?")
_LONG_WORD = re.compile(rf"[^\W_]{{{_MAX_LETTERS}}}(?=[^\W_])|\S{{{_MAX_RUN}}}(?=\S)")


@dataclass(frozen=True, slots=True)
class Spelling:
    """text: what is spoken, of ASCII and `_READ_BY_VOICE`. scripts: those that were written in Latin letters for it."""

    text: str
    scripts: frozenset[str]


def spell(text: str) -> Spelling:
    """Raises InvalidRequest naming the characters that have neither a sound nor a name."""
    composed = unicodedata.normalize("NFC", text)
    unnamed = sorted({char for char in composed if unicodedata.category(char) in ("Cn", "Co", "Cs")})
    if unnamed:
        listed = ", ".join(f"U+{ord(char):04X}" for char in unnamed[:8])
        raise InvalidRequest(
            f"The text has characters that nobody can pronounce: {listed}. Leave them out.", "input", "invalid_value"
        )
    scripts = frozenset(filter(None, map(_script, set(composed))))
    plain = "".join(char if char.isascii() and char.isprintable() else _reading(char) for char in composed)
    plain = _ADDRESS.sub(_spell_address, plain)
    for pattern, replacement in _REWRITTEN:
        plain = pattern.sub(replacement, plain)
    spelled = _LONG_WORD.sub(r"\g<0> ", _NUMBER.sub(_spell_digits, plain))
    return Spelling(_tidy(spelled), scripts)


def has_sound(spelling: str) -> bool:
    """Whether there is anything in a spelled text besides pauses."""
    return any(char.isalnum() or char in _SIGNS_WITH_SOUND for char in spelling)


_SIGNS_WITH_SOUND = frozenset("%&@#$+=^") | (_READ_BY_VOICE - frozenset("’‘“”…—–"))


def _tidy(text: str) -> str:
    """One space between words, and one comma between names."""
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" (?=[,.;:!?])", "", re.sub(r",(?: ?,)+", ",", text)).strip()


@lru_cache(maxsize=4096)
def _reading(char: str) -> str:
    """One character that is not printable ASCII."""
    if char in _READ_BY_VOICE:
        return char
    if char in _NAMES:
        return _NAMES[char]
    kind = unicodedata.category(char)
    if kind in ("Zl", "Zp") or char == "\n":
        return "\n"
    if kind in ("Zs", "Cc"):
        return " "
    if kind == "Cf":  # joiners, marks of direction, soft hyphens
        return ""
    if kind.startswith("S"):
        return _symbol(char)
    return _letter(char, kind)


def _symbol(char: str) -> str:
    if "\u2500" <= char <= "\u259f":  # lines and boxes drawn with letters
        return " "
    name = unicodedata.name(char).lower()
    if name.startswith("regional indicator symbol letter "):
        return f" {name[-1].upper()} "
    return f", {name.removesuffix(' sign').replace('-', ' ')}, "


def _letter(char: str, kind: str) -> str:
    """A letter, digit, mark or punctuation in ASCII."""
    decimal = unicodedata.decimal(char, None)
    if decimal is not None:
        return str(decimal)
    compatible = unicodedata.normalize("NFKC", char)
    if compatible != char and kind.startswith("N"):
        return f" {''.join(part if part.isascii() else _reading(part) for part in compatible)} "
    plain = anyascii(char)
    if kind.startswith("P"):
        return f"{plain} " if plain and plain in ".,;:!?\"'()-/%&@*#" else " "
    if plain.strip():
        return f" {plain.lower()} " if _script(char) == "cjk" else plain
    if kind.startswith("M"):  # of another letter, which is spoken
        return ""
    return f", {unicodedata.name(char).lower().replace('-', ' ')}, "


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """That of a letter beyond the Latin ones, by the first word of its name; "" for anything else."""
    if char.isascii() or char in _READ_BY_VOICE or not char.isalpha():
        return ""
    name = unicodedata.normalize("NFKC", char)[0]
    script = unicodedata.name(name, "").partition(" ")[0].lower().partition("-")[0]
    return "" if script in ("latin", "modifier", "micro", "feminine", "masculine", "ohm", "kelvin") else script


def _spell_address(match: re.Match[str]) -> str:
    address = match.group()
    body = address.rstrip(".,;:!?")
    spelled = "".join(f" {_ADDRESS_SIGNS[char]} " if char in _ADDRESS_SIGNS else char for char in body)
    return spelled + address[len(body) :]


def _spell_digits(match: re.Match[str]) -> str:
    number = match.group()
    if sum(map(str.isdigit, number)) <= _MAX_DIGITS:
        return number
    return "".join(_spell_digit(char) for char in number).strip()


def _spell_digit(char: str) -> str:
    if char.isdigit():
        return f"{_DIGITS[int(char)]} "
    return "point " if char == "." else ", "
