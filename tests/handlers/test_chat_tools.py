import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.chat.tools.formats import HERMES, LLAMA, MISTRAL, ToolFormat, choose, knows_tools
from handlers.chat.tools.history import as_text, for_template
from handlers.chat.tools.parser import ToolParser
from handlers.chat.types import Tool, ToolCallDelta
from tests.handlers.effort import effort, in_fours

FORMATS = [HERMES, LLAMA, MISTRAL]
Call = tuple[str | None, str]


def parse(form: ToolFormat, pieces: Sequence[str]) -> tuple[str, list[Call]]:
    """The text, and the name and arguments of every call."""
    parser = ToolParser(form, {"f", "g-2"})
    parts = [*map(parser.feed, pieces), parser.flush()]
    deltas = [delta for part in parts for delta in part[1]]
    calls = [
        (delta.name, "".join(other.arguments for other in deltas if other.index == delta.index))
        for delta in deltas
        if delta.id
    ]
    assert parser.calls == len(calls)
    return "".join(part[0] for part in parts), calls


@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (HERMES, 'Hi <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "Hi ", [("f", '{"a": 1}')]),
        (
            HERMES,
            HERMES.write_calls([("f", "{}"), ("g-2", '{"x":"}]\\""}')]) + " done",
            " done",
            [("f", "{}"), ("g-2", '{"x":"}]\\""}')],
        ),
        (HERMES, '<tool_call>{"arguments": {"a": [1, {}]}, "name": "f"}', "", [("f", '{"a": [1, {}]}')]),
        (HERMES, '<tool_call>{"id": 7, "name": "f"}</tool_call>', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
        (
            LLAMA,
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}',
            "",
            [("f", "{}")] * 2,
        ),
        (LLAMA, 'See <|python_tag|>{"name": "f", "parameters": {}}', "See ", [("f", "{}")]),
        (
            MISTRAL,
            'So [TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g-2", "arguments": {"a": []}}] ok',
            "So  ok",
            [("f", "{}"), ("g-2", '{"a": []}')],
        ),
    ],
)
def test_calls_are_told_from_text_however_it_is_cut(form: ToolFormat, text: str, said: str, calls: list[Call]) -> None:
    for size in (1, 2, 3, 7, len(text)):
        assert parse(form, [text[i : i + size] for i in range(0, len(text), size)]) == (said, calls)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "a < b, a <tool, <tool_call> x <tool_call"),
        (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "text"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "argu'),
        (HERMES, "<tool_call>{}</tool_call>"),
        (HERMES, '<tool_call>{"name" "f"}'),
        (HERMES, '<tool_call>{"na\nme": "f"}'),
        (HERMES, "<tool_call>__import__('os').system('id')</tool_call>"),
        (LLAMA, '{"answer": 42, "list": [1, 2], "done": true}'),
        (LLAMA, ' {"name": [}'),
        (LLAMA, "Just text {"),
        (LLAMA, "<|python"),
        (MISTRAL, "[TOOL_CALLS] none"),
        (MISTRAL, '[TOOL_CALLS][{"name": 1}]'),
        (MISTRAL, "[1, 2]"),
    ],
)
def test_what_is_no_call_comes_back_as_text(form: ToolFormat, text: str) -> None:
    assert parse(form, [text]) == parse(form, list(text)) == (text, [])


def test_arguments_stream_in_pieces() -> None:
    parser = ToolParser(HERMES, {"f"}, new_id=lambda: "call_1")

    assert parser.feed('<tool_call>\n{"name": "f", "arguments": ') == ("", ())
    assert parser.feed('{"ci') == ("", (ToolCallDelta(0, "call_1", "f", '{"ci'),))
    assert parser.feed('ty": "Bonn"') == ("", (ToolCallDelta(0, arguments='ty": "Bonn"'),))
    assert parser.feed("}}\n</tool_call>") == ("", (ToolCallDelta(0, arguments="}"),))
    assert parser.flush() == ("", ())


def test_a_marker_is_held_back_until_it_is_known() -> None:
    parser = ToolParser(HERMES, {"f"})

    assert parser.feed("see <tool") == ("see ", ())
    assert parser.feed("box>") == ("<toolbox>", ())


PIECES = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": ', '"f"', ', "arguments": ', "{}"]
PIECES += ["{", "}", "[", "]", ",", ";", ":", '"', "\\", " ", "\n", "a", "1", '{"name": "f", "parameters": {"a": "']


@given(st.sampled_from(FORMATS), st.lists(st.sampled_from(PIECES), max_size=20))
def test_any_output_parses_alike_however_it_is_cut(form: ToolFormat, pieces: list[str]) -> None:
    whole = parse(form, ["".join(pieces)])

    assert parse(form, pieces) == parse(form, list("".join(pieces))) == whole
    assert whole[1] or whole[0] == "".join(pieces)


UNITS = ["<tool_call>", "<tool_call", "<", "{", "[", "[TOOL_CALLS][", "<|python_tag|>", " ", "word ", '"', "\\"]
UNITS += ['<tool_call>{"name": "f", "arguments": {"x": ', '[TOOL_CALLS][{"name": "f", "arguments": {"x": "']
UNITS += ['<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', '{"name": "f", "parameters": {"x": [[], "']


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("form", FORMATS)
def test_work_grows_with_the_output_and_not_faster(form: ToolFormat, unit: str) -> None:
    once, thrice = (effort(ToolParser(form, {"f"}).feed, in_fours(unit, size)) for size in (2_000, 6_000))

    assert thrice < 3.2 * once


@pytest.mark.parametrize("start", ["", "<tool_call>", '<tool_call>{"name": "f", "arguments": {"x": "'])
def test_however_long_a_run_nothing_is_looked_at_twice(start: str) -> None:
    parser = ToolParser(HERMES, {"f"})
    parser.feed(start)
    pieces = in_fours("word ", 5_000)

    assert effort(parser.feed, pieces) < 80 * len(pieces)


@pytest.mark.parametrize("form", FORMATS)
def test_fragments_of_calls_in_one_piece_are_passed_over_in_one_go(form: ToolFormat) -> None:
    text = "<tool_call>[TOOL_CALLS]<|python_tag|>[[" * 1_000

    assert effort(ToolParser(form, {"f"}).feed, [text]) < 10 * len(text)


@pytest.mark.parametrize(
    ("template", "vocabulary", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", [], HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", [], MISTRAL),
        ('{{ tools }} {"name": function name, "parameters": dictionary of argument name', [], LLAMA),
        ("{{ tools }}", ["<|python_tag|>"], LLAMA),
        ("{{ tools }}", [], HERMES),
        ("{{ messages }}", ["[TOOL_CALLS]"], HERMES),
        (None, [], HERMES),
    ],
)
def test_the_format_is_that_of_the_template(template: str | None, vocabulary: list[str], form: ToolFormat) -> None:
    assert choose(template, vocabulary) is form
    assert knows_tools(template) == ("tools" in (template or ""))


TOOL = Tool("f", "Does it.", {"type": "object", "properties": {"a": {"type": "integer"}}})
CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Do it"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "{content}"},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "2"},
]


@pytest.mark.parametrize("form", FORMATS)
def test_past_calls_are_written_as_the_model_would(form: ToolFormat) -> None:
    system, user, assistant, results = as_text(CONVERSATION, form, [TOOL])

    assert system["role"] == "system"
    assert '"name": "f"' in system["content"]
    assert user == CONVERSATION[0]
    assert results["role"] == "user"
    assert "{content}" in results["content"]
    assert set(assistant) == {"role", "content"}
    text, calls = parse(form, [assistant["content"]])
    assert (text, calls[0]) == ("", ("f", '{"a": 1}'))


def test_tools_are_described_after_the_system_message() -> None:
    messages = as_text([{"role": "system", "content": "Be brief."}], HERMES, [TOOL])

    assert len(messages) == 1
    assert messages[0]["content"].startswith("Be brief.\n\n# Tools")
    assert as_text([{"role": "user", "content": "Hi"}], HERMES, []) == [{"role": "user", "content": "Hi"}]


def test_templates_get_arguments_as_objects_and_ids_they_allow() -> None:
    plain = for_template(CONVERSATION, HERMES)
    short = for_template(CONVERSATION, MISTRAL)

    assert plain[1]["tool_calls"][0] == {**CALL, "function": {"name": "f", "arguments": {"a": 1}}}
    assert plain[2] == CONVERSATION[2]
    id = short[1]["tool_calls"][0]["id"]
    assert len(id) == 9
    assert id.isalnum()
    assert short[2]["tool_call_id"] == id


def test_arguments_that_are_no_json_are_left_as_they_are() -> None:
    broken: dict[str, Any] = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}

    assert for_template([broken], HERMES)[0]["tool_calls"][0]["function"]["arguments"] == "{"


@pytest.mark.parametrize("form", FORMATS)
def test_ids_are_of_the_kind_the_family_takes(form: ToolFormat) -> None:
    parser = ToolParser(form, {"f"})
    parser.feed(form.write_calls([("f", "{}")]))
    _, calls = ToolParser(form, {"f"}).feed(form.write_calls([("f", json.dumps({"a": 1}))]))

    id = calls[0].id or ""
    assert (len(id) == 9 and id.isalnum()) if form.short_ids else id.startswith("call_")
