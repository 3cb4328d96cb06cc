"""Where one sentence ends and the next begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.speech.sentences import split


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. K. Rowling at St. Mary's.", ["Dr. Smith met J. K. Rowling at St. Mary's."]),
        ("It costs 3.50 euros. Really.", ["It costs 3.50 euros.", "Really."]),
        ("He said “Go.” Then he left.", ["He said “Go.”", "Then he left."]),
        ("He waited... and went on.", ["He waited... and went on."]),
        ("A title\n\nA paragraph\nAnother", ["A title", "A paragraph", "Another"]),
        ("你好。世界！", ["你好。", "世界！"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_text_is_cut_at_the_ends_of_sentences(text: str, sentences: list[str]) -> None:
    assert split(text, 200) == sentences


def test_a_long_sentence_is_cut_at_commas_else_between_words_else_anywhere() -> None:
    assert split("one two, three four, five", 18) == ["one two,", "three four, five"]
    assert split("one two three four", 10) == ["one two", "three four"]
    assert split("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


@given(st.text("ab .,!?\n。;:—\"'", max_size=300), st.integers(4, 50))
def test_nothing_but_space_is_lost_and_no_part_is_too_long(text: str, most: int) -> None:
    parts = split(text, most)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part and len(part) <= most for part in parts)
