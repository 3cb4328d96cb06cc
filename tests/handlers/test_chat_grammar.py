import json
import time
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from handlers.chat.constraints import ConstraintError, Grammar
from handlers.chat.grammar import GrammarCompiler
from handlers.chat.reasoning import ReasoningFormat
from handlers.chat.tools.formats import HERMES, LLAMA, MISTRAL, ToolFormat
from handlers.chat.tools.parser import ToolParser
from handlers.chat.types import OutputFormat, Tool, ToolChoice
from handlers.errors import InvalidRequest

SPECIAL = ["<|end|>", "<|other|>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>"]
WORDS = ['{"', '":', '": ', '", "', '"}', "}}", "true", "null", "name", "arguments", "<tool_call>", "    ", "[[", "12"]
THINK = ReasoningFormat("<think>", "</think>")


def tiny_tokenizer() -> Tokenizer:
    """Bytes, a few longer tokens that straddle JSON's marks, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


TOKENIZER = tiny_tokenizer()


def id_of(token: str) -> int:
    return TOKENIZER.get_vocab()[token]


EOS, OTHER = id_of("<|end|>"), id_of("<|other|>")
TOKENS = TOKENIZER.get_vocab_size()
WIDTH = TOKENS + 13
"""As real models do, this one has logits that stand for no token."""

COMPILER = GrammarCompiler(TOKENIZER, [EOS], WIDTH)


def allowed(grammar: Grammar, text: str = "") -> set[int]:
    """The tokens that may follow `text`."""
    constraint = grammar.start()
    for token in TOKENIZER.encode(text).ids:
        constraint.accept(token)
    logits = torch.zeros(WIDTH)
    constraint.mask_logits(logits)
    return set(logits.isfinite().nonzero().flatten().tolist())


def takes(grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole answer."""
    try:
        return EOS in allowed(grammar, text)
    except ConstraintError:
        return False


def sample(grammar: Grammar, seed: int, limit: int = 400) -> tuple[str, bool]:
    """Text drawn from random logits that lean towards the end of strings, and whether it came to its end."""
    generator = torch.Generator().manual_seed(seed)
    constraint, ids = grammar.start(), list[int]()
    closing = [id_of(symbol) for symbol in '"}]']
    for _ in range(limit):
        logits = torch.randn(WIDTH, generator=generator)
        logits[closing] += 5
        logits[EOS] += 3
        constraint.mask_logits(logits)
        token = int(torch.multinomial(torch.softmax(logits, -1), 1, generator=generator))
        constraint.accept(token)
        if token == EOS:
            return TOKENIZER.decode(ids, skip_special_tokens=False), True
        ids.append(token)
    return TOKENIZER.decode(ids, skip_special_tokens=False), False


def schema(value: Any, param: str = "response_format") -> OutputFormat:
    return OutputFormat("json_schema", value, param)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_schema_is_followed_to_the_letter() -> None:
    grammar = COMPILER.compile(schema(PERSON))

    assert takes(grammar, '{"name": "Ann", "age": 7}')
    assert takes(grammar, '{\n  "name": "Ann",\n  "age": 7\n}')
    assert not takes(grammar, '{"name": "Ann"}')
    assert not takes(grammar, '{"name": "Ann", "age": -7}')
    assert not takes(grammar, '{"name": "Ann", "age": 7, "b": 1}')
    assert not takes(grammar, '{"name":  "Ann", "age": 7}')


def test_logits_without_a_token_and_special_tokens_never_pass() -> None:
    grammar = COMPILER.compile(OutputFormat("json_object"))

    after_quote = allowed(grammar, '{"')
    assert id_of("a") in after_quote
    assert not after_quote & {EOS, OTHER}
    assert max(after_quote) < TOKENS


@pytest.mark.parametrize(
    ("output", "right", "wrong"),
    [
        (OutputFormat("json_object"), ['{"a": [1, {"b": null}]}', "{}"], ["[]", "1", " {}", '{"a":   1}']),
        (OutputFormat("regex", "^[a-c/]+\\d$"), ["abc/1"], ["abc", "d1"]),
        (OutputFormat("regex", "cost: \\$"), ["cost: $"], ["cost: "]),
        (OutputFormat("regex", "a\nb"), ["a\nb"], ["ab"]),
        (OutputFormat("choice", ["yes", 'n"o\n']), ["yes", 'n"o\n'], ["y", "no"]),
        (OutputFormat("grammar", 'start: "a" rest\nrest: "b" | "c" rest'), ["accb"], ["ac", "b"]),
        (schema(True), ["1", "null"], ["x"]),
    ],
)
def test_other_kinds_of_output(output: OutputFormat, right: list[str], wrong: list[str]) -> None:
    grammar = COMPILER.compile(output)

    assert [text for text in right if not takes(grammar, text)] == []
    assert [text for text in wrong if takes(grammar, text)] == []


def test_an_answer_is_complete_when_only_its_end_may_come() -> None:
    constraint = COMPILER.compile(OutputFormat("choice", ["yes", "no"])).start()
    for token in TOKENIZER.encode("yes").ids:
        assert not constraint.complete
        constraint.accept(token)

    assert constraint.complete
    constraint.accept(EOS)
    assert constraint.complete


def test_a_token_outside_the_grammar_is_refused() -> None:
    constraint = COMPILER.compile(OutputFormat("choice", ["yes"])).start()

    with pytest.raises(ConstraintError):
        constraint.accept(id_of("x"))
    with pytest.raises(ConstraintError):
        constraint.mask_logits(torch.zeros(WIDTH))


def test_answers_share_a_grammar_and_nothing_else() -> None:
    grammar = COMPILER.compile(OutputFormat("choice", ["ab", "cd"]))
    first, second = grammar.start(), grammar.start()
    first.accept(id_of("a"))
    second.accept(id_of("c"))
    first.accept(id_of("b"))

    assert first.complete
    assert not second.complete


def test_grammars_used_lately_are_kept() -> None:
    assert COMPILER.compile(schema(PERSON)) is COMPILER.compile(schema(PERSON))


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        value = {"items": value}
    return value


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (schema({"if": {}, "then": {}}), "then"),
        (schema({"type": "string", "format": "int32"}), "format"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-ahead"),
        (schema({"type": "string", "pattern": "a" * 5000}), "pattern"),
        (schema({"type": "object", "minProperties": 2}), "minProperties"),
        (schema({"type": "object", "properties": {f"p{i}": {} for i in range(1001)}}), "properties"),
        (schema({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}), "oneOf"),
        (schema({"$ref": "#"}), "$ref"),
        (schema({"$ref": "http://x/y"}), "http://x/y"),
        (schema({"$ref": "#/$defs/missing"}), "missing"),
        (schema({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}), "$ref"),
        (schema({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "$ref"),
        (schema({"x-guidance": {"lenient": True}, "not": {}}), "x-guidance"),
        (schema({"enum": []}), "enum"),
        (schema(False), "Unsatisfiable"),
        (schema({"type": "strin"}), "strin"),
        (schema([1]), "object"),
        (schema({"const": "\ud800"}), "valid JSON"),
        (schema({"const": float("nan")}), "valid JSON"),
        (schema(nested(65)), "deeper"),
        (schema(nested(100_000)), "deeper"),
        (schema({"enum": list(range(20_000))}), "parts"),
        (schema({"description": "x" * 200_000}), "bytes"),
        (OutputFormat("regex", "(a"), "regex"),
        (OutputFormat("regex", "a" * 5000), "regex"),
        (OutputFormat("regex", 5), "regex"),
        (OutputFormat("choice", []), "choice"),
        (OutputFormat("choice", [1]), "choice"),
        (OutputFormat("choice", ["x" * 100_000]), "choice"),
        (OutputFormat("grammar", "start: nothing"), "nothing"),
        (OutputFormat("grammar", ""), "grammar"),
        (OutputFormat("grammar", 'start: a\na: a "x"'), "cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(output: OutputFormat, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(output)

    assert word in caught.value.message
    assert "guidance/>" not in caught.value.message
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "output",
    [
        OutputFormat("regex", "(a+)+b"),
        OutputFormat("regex", "((a{1,500}){1,500}){1,500}"),
        OutputFormat("regex", "(" * 1900 + "a" + ")" * 1900),
        OutputFormat("grammar", 'start: a\na: a a | "x" | a "y" a |'),
        schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}),
        schema({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(8)]}),
        schema(
            {
                "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 4} for i in range(60)},
                "$ref": "#/$defs/d0",
            }
        ),
    ],
)
def test_hostile_grammars_end_soon(output: OutputFormat) -> None:
    started = time.process_time()
    try:
        sample(COMPILER.compile(output), seed=0, limit=20)
    except (InvalidRequest, ConstraintError):
        pass

    assert time.process_time() - started < 5


def test_recursion_that_can_end_is_followed() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
    }
    grammar = COMPILER.compile(schema(tree))

    assert takes(grammar, '{"next": {"next": null}}')
    assert not takes(grammar, '{"next": {}}')


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], free: bool, required: bool) -> Any:
        names = list(properties) if required else []
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": free}

    return st.builds(
        build,
        st.dictionaries(st.sampled_from(["a", "b\n", 'c"', "ö"]), values, max_size=3),
        st.booleans(),
        st.booleans(),
    )


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string", "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "integer", "minimum": -3, "maximum": 120},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
            {"type": ["boolean", "null"]},
            {"enum": ["x", 1, None, {"a": [True]}]},
            {"const": 'quote" and \\'},
        ]
    ),
    lambda values: st.one_of(
        st.builds(
            lambda item, most: {"type": "array", "items": item, "minItems": 1, "maxItems": most},
            values,
            st.integers(1, 3),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(values, min_size=1, max_size=3)),
        objects(values),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(SCHEMAS, st.integers(0, 2**32))
def test_whatever_is_drawn_under_the_mask_fits_the_schema(value: Any, seed: int) -> None:
    text, ended = sample(COMPILER.compile(schema(value)), seed)

    if ended:
        jsonschema.validate(json.loads(text), value)


TOOLS = [
    Tool(
        "weather-2", "", {"properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}, strict=True
    ),
    Tool(
        "sum",
        "",
        {"properties": {"of": {"type": "array", "items": {"type": "integer"}}}, "additionalProperties": False},
    ),
    Tool("odd", "", {"properties": {"x": {"not": {}}}}),
]
CALL = '{"name": "sum", "%s": {"of": [1]}}'
FORMATS = [HERMES, LLAMA, MISTRAL]


def calls_of(form: ToolFormat, text: str) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser(form, [tool.name for tool in TOOLS])
    parts = [*map(parser.feed, text), parser.flush()]
    found: list[tuple[str, str]] = []
    for delta in (delta for part in parts for delta in part[1]):
        if delta.name:
            found.append((delta.name, ""))
        found[-1] = (found[-1][0], found[-1][1] + delta.arguments)
    return "".join(part[0] for part in parts), found


@settings(max_examples=40)
@given(st.sampled_from(FORMATS), st.booleans(), st.integers(0, 2**32))
def test_forced_calls_parse_back_and_fit_their_schemas(form: ToolFormat, parallel: bool, seed: int) -> None:
    text, ended = sample(COMPILER.compile_tools(form, TOOLS, ToolChoice("required"), parallel), seed)

    said, calls = calls_of(form, text)
    assert calls or not ended
    if ended:
        assert said == ""
        assert parallel or len(calls) == 1
        for name, arguments in calls:
            tool = next(tool for tool in TOOLS if tool.name == name)
            jsonschema.validate(json.loads(arguments), {"type": "object"} if name == "odd" else tool.parameters)


def written(form: ToolFormat, calls: int = 1) -> str:
    return form.write_calls([("sum", '{"of": [1]}')] * calls)


@pytest.mark.parametrize("form", FORMATS)
def test_auto_allows_text_or_a_call_but_no_broken_call(form: ToolFormat) -> None:
    grammar = COMPILER.compile_tools(form, TOOLS, ToolChoice("auto"))

    assert takes(grammar, "Hello, you.")
    assert takes(grammar, "")
    assert takes(grammar, written(form))
    assert takes(grammar, written(form, 2)) == form.several
    for wrong in (written(form).replace("sum", "gum"), written(form).replace("[1]", "[true]"), written(form)[:-1]):
        assert not takes(grammar, wrong) or calls_of(form, wrong)[1] == [("sum", '{"of": [1]}')]


@pytest.mark.parametrize("form", FORMATS)
def test_without_parallel_calls_there_is_one(form: ToolFormat) -> None:
    for mode in ("auto", "required"):
        grammar = COMPILER.compile_tools(form, TOOLS, ToolChoice(mode), parallel=False)

        assert takes(grammar, written(form))
        assert not takes(grammar, written(form, 2))


@pytest.mark.parametrize("form", FORMATS)
def test_only_the_named_tools_may_be_called(form: ToolFormat) -> None:
    grammar = COMPILER.compile_tools(form, TOOLS, ToolChoice("required", ("weather-2",)))

    assert not takes(grammar, written(form))
    assert not takes(grammar, "Hello")
    assert takes(grammar, form.write_calls([("weather-2", '{"city": "Bonn"}')]))


@pytest.mark.parametrize("form", FORMATS)
def test_text_beside_calls_may_have_a_format_of_its_own(form: ToolFormat) -> None:
    for output in (schema(PERSON), OutputFormat("choice", ["yes"])):
        grammar = COMPILER.compile_tools(form, TOOLS, ToolChoice("auto"), output=output)

        assert takes(grammar, '{"name": "Ann", "age": 7}') == (output.kind == "json_schema")
        assert takes(grammar, "yes") == (output.kind == "choice")
        assert takes(grammar, form.optional_opener + written(form))
        assert not takes(grammar, "Hello")


def test_bare_calls_beside_a_formatted_answer_need_a_mark() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str().replace("<|python_tag|>", "<|some_tag|>"))

    with pytest.raises(InvalidRequest, match="tool_choice"):
        GrammarCompiler(tokenizer, [EOS], WIDTH).compile_tools(
            LLAMA, TOOLS, ToolChoice("auto"), output=OutputFormat("json_object")
        )


def test_a_marker_that_is_spelled_out_counts_as_well() -> None:
    grammar = COMPILER.compile_tools(HERMES, TOOLS, ToolChoice("auto"))
    constraint = grammar.start()
    for character in "a <tool_call>":
        constraint.accept(id_of("Ġ" if character == " " else character))
    logits = torch.zeros(WIDTH)
    constraint.mask_logits(logits)

    assert logits.isfinite().nonzero().flatten().tolist() == [id_of("Ċ")]


def test_tools_that_cannot_be_held_to_their_schema_are_refused_if_strict() -> None:
    strict = Tool("odd", "", {"properties": {"x": {"not": {}}}}, strict=True)

    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile_tools(HERMES, [TOOLS[0], strict], ToolChoice("auto"))
    assert (caught.value.param, "not" in caught.value.message) == ("tools[1].function.parameters", True)


def test_a_choice_of_no_tool_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile_tools(HERMES, TOOLS, ToolChoice("required", ("other",)))
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("thinking", [THINK, ReasoningFormat("<reasoning>", "</reasoning>")])
def test_reasoning_comes_before_the_answer(thinking: ReasoningFormat) -> None:
    """Markers are special tokens in the one case, and text in the other."""
    answer = OutputFormat("choice", ["yes"])
    opened = COMPILER.compile(answer, thinking, thinking_opened=True)
    free = COMPILER.compile(answer, thinking)

    assert takes(opened, f"Let me see{thinking.closer}\n\nyes")
    assert not takes(opened, "yes")
    assert not takes(opened, f"Let me see{thinking.closer}no")
    assert takes(free, "yes")
    assert takes(free, f"{thinking.opener}Let me see{thinking.closer}yes")


def test_reasoning_comes_before_calls() -> None:
    grammar = COMPILER.compile_tools(HERMES, TOOLS, ToolChoice("required"), thinking=THINK, thinking_opened=True)

    assert takes(grammar, f"Hm </think>\n{written(HERMES)}")
    assert not takes(grammar, written(HERMES))


def test_a_tokenizer_that_the_library_cannot_read_is_no_server_error() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))

    with pytest.raises(InvalidRequest, match="tokenizer"):
        GrammarCompiler(words, [1], 2).compile(OutputFormat("json_object"))
