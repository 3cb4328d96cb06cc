"""Which prompt goes before a text: names of the model's own, and the words of other servers."""

import json
from pathlib import Path
from typing import Any

import pytest

from handlers.embeddings.prompts import Prompts, load_prompts
from handlers.embeddings.types import PromptChoice
from handlers.errors import InvalidRequest

BOTH = {"query": "query: ", "passage": "passage: ", "clustering": "cluster: "}
QUERY_ONLY = {"query": "Represent this: "}
OTHERS = {"s2p_query": "Instruct: ", "s2s_query": "Instruct: "}


def text_for(prompts: dict[str, str], param: str, value: str, default: str | None = None) -> str | None:
    return Prompts("tiny", prompts, default).text(PromptChoice(param, value))


@pytest.mark.parametrize("param", ["input_type", "task"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("query", "query: "),
        ("search_query", "query: "),
        ("retrieval.query", "query: "),
        ("document", "passage: "),
        ("passage", "passage: "),
        ("search_document", "passage: "),
        ("retrieval.passage", "passage: "),
        ("clustering", "cluster: "),
    ],
)
def test_words_of_every_server_find_the_models_prompt(param: str, value: str, expected: str) -> None:
    assert text_for(BOTH, param, value) == expected


@pytest.mark.parametrize(
    ("prompts", "value", "expected"),
    [
        ({"search_query": "a", "search_document": "b"}, "document", "b"),
        ({"retrieval.query": "a", "retrieval.passage": "b"}, "search_query", "a"),
        (QUERY_ONLY, "document", ""),
        ({"document": "b"}, "query", ""),
        (OTHERS, "s2p_query", "Instruct: "),
    ],
)
def test_what_a_model_calls_its_prompts_does_not_matter(prompts: dict[str, str], value: str, expected: str) -> None:
    assert text_for(prompts, "input_type", value) == expected


@pytest.mark.parametrize("value", ["query", "search_document", "retrieval.passage", "text-matching", "clustering"])
@pytest.mark.parametrize("prompts", [{}, {"query": "", "document": ""}])
def test_a_model_without_prompts_treats_all_texts_alike(prompts: dict[str, str], value: str) -> None:
    assert not text_for(prompts, "input_type", value)


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        (BOTH, None, "query: ", "passage: "),
        (BOTH, "clustering", "query: ", "passage: "),
        (QUERY_ONLY, None, "Represent this: ", ""),
        ({"document": "b"}, None, "", "b"),
        (OTHERS, None, "", ""),
        (OTHERS, "s2p_query", "Instruct: ", "Instruct: "),
        ({}, None, "", ""),
    ],
)
def test_a_search_has_the_prompts_of_its_two_sides(
    prompts: dict[str, str], default: str | None, query: str, document: str
) -> None:
    sides = Prompts("tiny", prompts, default)
    assert (sides.of_search("query"), sides.of_search("document")) == (query, document)


def test_prompts_are_taken_by_their_own_names() -> None:
    assert text_for(BOTH, "prompt_name", "passage") == "passage: "
    assert text_for({"document": ""}, "prompt_name", "document") == ""


@pytest.mark.parametrize(
    ("prompts", "param", "value", "message"),
    [
        (BOTH, "prompt_name", "document", "its prompts are query, passage, clustering. Send one of them."),
        ({}, "prompt_name", "query", "it has none. Leave 'prompt_name' out."),
        (BOTH, "input_type", "image", "its prompts are query, passage, clustering. Send 'query' or 'document', or one"),
        (BOTH, "task", "separation", "no prompt for 'task' 'separation'"),
        ({}, "input_type", "image", "it has none. Send 'query' or 'document', or leave it out."),
        (OTHERS, "input_type", "query", "its prompts are s2p_query, s2s_query."),
    ],
)
def test_a_prompt_that_is_not_there_is_refused_with_those_that_are(
    prompts: dict[str, str], param: str, value: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        text_for(prompts, param, value)
    assert message in refused.value.message
    assert refused.value.param == param


def test_the_default_goes_before_every_text_unless_another_is_chosen() -> None:
    prompts = Prompts("tiny", BOTH, "query")
    assert prompts.text(None) == "query: "
    assert prompts.text(PromptChoice("input_type", "document")) == "passage: "
    assert Prompts("tiny", BOTH).text(None) == ""


def folder_with(folder: Path, config: Any, pooling: dict[str, Any] | None = None) -> Path:
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    return folder


def test_prompts_are_read_from_the_models_folder(tmp_path: Path) -> None:
    assert load_prompts("tiny", tmp_path).names == ()
    prompts = load_prompts("tiny", folder_with(tmp_path, {"prompts": BOTH, "default_prompt_name": "passage"}))
    assert (prompts.names, prompts.default, prompts.text(None)) == (tuple(BOTH), "passage", "passage: ")


@pytest.mark.parametrize(
    ("config", "pooling", "message"),
    [
        ({"prompts": BOTH, "default_prompt_name": "document"}, {}, "names the default prompt 'document'"),
        ({"prompts": ["query: "]}, {}, "has prompts that are not texts by name"),
        ({"prompts": {"query": 1}}, {}, "has prompts that are not texts by name"),
        ({"prompts": BOTH}, {"include_prompt": False}, "its pooling leaves the prompt out"),
    ],
)
def test_prompts_that_cannot_be_followed_are_refused_at_load(
    tmp_path: Path, config: Any, pooling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_prompts("tiny", folder_with(tmp_path, config, pooling))
