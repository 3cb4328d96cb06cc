import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.chat.reasoning import FORMATS, ReasoningFormat, ReasoningSplitter, reasoning_format
from handlers.chat.tools.formats import HERMES, LLAMA, MISTRAL
from tests.handlers.effort import effort, in_fours

THINK = ReasoningFormat("<think>", "</think>")


def split(pieces: list[str], opened: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(THINK, opened)
    parts = [*map(splitter.feed, pieces), splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm\n", "yes"),
        ("\n<think>hm</think>yes", False, "hm", "yes"),
        ("\nhm</think>\n\nyes", True, "hm", "yes"),
        ("yes <think>no</think>", False, "", "yes <think>no</think>"),
        ("<thin", False, "", "<thin"),
        (" <thing>", False, "", " <thing>"),
        ("<think>hm</thi", False, "hm</thi", ""),
        ("<think></think>yes </think>", False, "", "yes </think>"),
        ("  ", False, "", "  "),
        ("", True, "", ""),
        ("<think>hm</think>\n", False, "hm", ""),
    ],
)
def test_reasoning_and_answer_are_told_apart_however_the_text_is_cut(
    text: str, opened: bool, reasoning: str, answer: str
) -> None:
    assert split([text], opened) == (reasoning, answer)
    assert split(list(text), opened) == (reasoning, answer)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think>", "a", " ", "\n"]), max_size=12), st.booleans()
)
def test_pieces_make_no_difference(pieces: list[str], opened: bool) -> None:
    text = "".join(pieces)

    assert split(pieces, opened) == split([text], opened) == split(list(text), opened)


def test_text_comes_as_soon_as_it_is_known() -> None:
    splitter = ReasoningSplitter(THINK, opened=False)

    assert splitter.feed("<think>hm</") == ("hm", "")
    assert splitter.feed("b") == ("</b", "")
    assert splitter.feed("</think> y") == ("", "y")
    assert splitter.feed("es") == ("", "es")


def test_the_format_is_the_one_the_template_speaks_of() -> None:
    assert reasoning_format("{{ '<think>' }}") == THINK
    assert reasoning_format("{{ content.split('[/THINK]') }}") == FORMATS[1]
    assert reasoning_format("{{ content }}") is None
    assert reasoning_format(None) is None


def test_a_prompt_may_open_the_reasoning() -> None:
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert THINK.markers == ("<think>", "</think>")


@pytest.mark.parametrize("unit", ["<think>", "</think>", "</think", "<", " ", "word "])
@pytest.mark.parametrize("opened", [True, False])
def test_work_grows_with_the_text_and_not_faster(unit: str, opened: bool) -> None:
    once, thrice = (effort(ReasoningSplitter(THINK, opened).feed, in_fours(unit, size)) for size in (2_000, 6_000))

    assert thrice < 3.2 * once


def test_a_marker_begins_where_its_first_character_last_stands() -> None:
    """What `held_back` takes for granted."""
    markers = [marker for form in FORMATS for marker in form.markers]
    markers += [marker for form in (HERMES, LLAMA, MISTRAL) for marker in (form.opener, form.optional_opener) if marker]

    assert all(marker.count(marker[0]) == 1 for marker in markers)
