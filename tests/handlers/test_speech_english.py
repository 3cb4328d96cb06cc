"""Any text becomes something an English voice can say, and nothing of it is lost."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import InvalidRequest
from handlers.speech.english import has_sound, spell

# What is left out by its nature: spaces, marks on a letter or of direction, and characters that are not text.
SILENT = ("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Dr. Smith paid $1,250.50 on 3/4/2024.", "Dr. Smith paid $1,250.50 on 3/4/2024."),
        ("Mail bob.smith@example.com now.", "Mail bob dot smith at example dot com now."),
        ("http://a.io/b-c?d=1.", "http colon slash slash a dot io slash b dash c question mark d equals 1."),
        ("Open main.py in U.S. cities. Then go.", "Open main dot py in U.S. cities. Then go."),
        ("5€, 3 £, $ 7, US$ and one$two", "€5, £3, $7, US dollar and one dollar two"),
        ("a < b > c", "a less than b greater than c"),
        ("one\n-----\ntwo", "one\n \ntwo"),
        ("[text](/sounds/)", "[text] (/sounds/)"),
        ("x™ y® •z", "x trademark y registered, z"),
        ("😀😀", ", grinning face, grinning face,"),
        ("👍🏽 🇺🇸 👩\u200d🚀", ", thumbs up, medium skin tone U S, woman, rocket,"),
        ("½ of ② and ４２ and ٣", "½ of 2 and 42 and 3"),
        ("café naïve Zürich Straße Ångström ﬁne", "cafe naive Zurich Strasse Angstrom fine"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("bell\x07 esc\x1b[31m\0", "bell esc [31m"),
        ("你好。Привет!", "ni hao. Privet!"),
        ("4111111111111111", " ".join(["four", *["one"] * 15])),
        ("3.141592653589793", "three point one four one five nine two six five three five eight nine seven nine three"),
    ],
)  # fmt: skip
def test_what_a_voice_would_pass_over_is_put_into_words(text: str, spoken: str) -> None:
    assert spell(text).text == spoken


def test_alphabets_that_were_written_in_latin_letters_are_named() -> None:
    assert spell("Привет, 世界! Ünïcode, ½µ").scripts == {"cyrillic", "cjk"}


@pytest.mark.parametrize("char", ["\ue000", "\ud800", "\U000e01f0", "\uffff"])
def test_what_has_neither_sound_nor_name_is_refused_by_its_number(char: str) -> None:
    with pytest.raises(InvalidRequest, match=f"U\\+{ord(char):04X}") as refused:
        spell(f"Hello {char}!")
    assert refused.value.param == "input"


@pytest.mark.parametrize("text", ["!!!", "...", "—", "“”", "\0", "\u200b", "-----", "()", ""])
def test_pauses_alone_have_no_sound(text: str) -> None:
    assert not has_sound(spell(text).text)


@pytest.mark.parametrize("text", ["a", "5", "😀", "%", "€", "好", "½", "+", "←"])
def test_words_and_signs_have_a_sound(text: str) -> None:
    assert has_sound(spell(text).text)


@given(st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), max_size=60))
def test_every_text_can_be_spelled_in_what_the_voice_reads(text: str) -> None:
    spelled = spell(text).text
    assert all(
        char == "\n" or char.isascii() and char.isprintable() or has_sound(char) or char in "’‘“”…—–"
        for char in spelled
    )


@given(st.characters(exclude_categories=["Cs", "Co", "Cn"]))
def test_no_letter_digit_or_symbol_is_lost(char: str) -> None:
    drawn = "\u2500" <= char <= "\u259f" or char in "|~`\u00a8" or unicodedata.category(char) == "Sk"
    if unicodedata.category(char)[0] in "LNS" and unicodedata.category(char) not in SILENT and not drawn:
        assert has_sound(spell(char).text), unicodedata.name(char, hex(ord(char)))


@pytest.mark.parametrize("run", ["9", "a", "1,", "a.b@", "www.", "[](", "$", "%", "a-", "é", "٣", "😀"])
def test_long_runs_are_cut_into_what_can_be_read(run: str) -> None:
    text = run * (4096 // len(run))
    assert max(map(len, spell(text).text.split())) <= 40
