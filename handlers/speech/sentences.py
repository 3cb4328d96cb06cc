"""A text in the pieces that are spoken one after the other."""

import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=\S)|(?<=[。！？])\s*(?=\S)|\n\s*")
_CLAUSE = re.compile(r"(?<=[,;:—])\s+")
_BEFORE_NAMES = frozenset(
    "Mr Mrs Ms Dr Prof St Mt Ft Gen Gov Sen Rep Capt Lt Col Sgt Rev Hon Pres Fr vs e.g i.e cf No Nos Vol Fig".split()
)

_LONGEST_NAME = 8


def split(text: str, most: int) -> Sequence[str]:
    """Sentences, and parts of those that are longer than `most` characters; without the space around them."""
    return [part for sentence in _sentences(text) for part in _bounded(sentence, most)]


def without_control(text: str) -> str:
    """Composed (NFC), without characters that are not text; line ends stay."""
    return "".join(map(_visible, unicodedata.normalize("NFC", text)))


def _visible(char: str) -> str:
    return char if char == "\n" else {"Cc": " ", "Cf": "", "Zs": " "}.get(unicodedata.category(char), char)


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(text):
        if _is_end(text, match):
            yield text[start : match.end()].strip()
            start = match.end()
    yield text[start:].strip()


def _is_end(text: str, match: re.Match[str]) -> bool:
    """Not after a title, an initial or an abbreviation, nor before a word in small letters."""
    if "\n" in match.group() or text[match.start() - 1] != ".":
        return True
    if text[match.end()].islower():
        return False
    end = match.start() - 1
    last = text[max(0, end - _LONGEST_NAME) : end].rpartition(" ")[2].lstrip("(\"'“‘")
    return last not in _BEFORE_NAMES and not (len(last) == 1 and last.isupper())


def _bounded(sentence: str, most: int) -> Iterator[str]:
    """At commas if that is enough, else between words."""
    part = ""
    for clause in _CLAUSE.split(sentence):
        if part and len(part) + 1 + len(clause) > most:
            yield from textwrap.wrap(part, most, break_on_hyphens=False)
            part = ""
        part = f"{part} {clause}" if part else clause
    yield from textwrap.wrap(part, most, break_on_hyphens=False)
