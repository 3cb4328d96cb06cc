"""The step engine against transformers' own `generate`, on a tiny model with random weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from batching.generation import Joining
from handlers.chat.engine import Prompt, TransformersEngine
from handlers.chat.types import Sampling
from tests.handlers.tiny import save_chat_model

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12], [100], [20, 21, 22, 23, 24]]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = save_chat_model(tmp_path_factory.mktemp("chat"))
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference(model: LlamaForCausalLM, prompt: Sequence[int], tokens: int) -> list[int]:
    generate: Any = model.generate  # type: ignore[misc]
    output = generate(
        torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return list(output[0, len(prompt) :].tolist())


@contextmanager
def nan_embedding(model: LlamaForCausalLM, token: int) -> Iterator[None]:
    """The model gives no numbers for a row that was just given `token`."""
    weight = model.model.embed_tokens.weight.data
    kept = weight[token].clone()
    weight[token] = float("nan")
    try:
        yield
    finally:
        weight[token] = kept


class Run:
    """Drives an engine and gathers what each row was given."""

    def __init__(self, model: LlamaForCausalLM, eos: Sequence[int] = ()) -> None:
        self.engine = TransformersEngine(model, eos)
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, str] = {}

    def step(self, *joining: Joining[Prompt, int], leaving: Sequence[int] = ()) -> None:
        for output in self.engine.step(joining, leaving):
            assert output.error is None and output.token is not None
            self.tokens.setdefault(output.id, []).append(output.token)
            if output.finish_reason:
                self.finished[output.id] = output.finish_reason


def join(id: int, tokens: int = 12, sampling: Sampling = GREEDY, generated: Sequence[int] = ()) -> Joining[Prompt, int]:
    return Joining(id, Prompt(PROMPTS[id], tokens, sampling), generated)


def test_a_row_alone_equals_generate(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(1))
    for _ in range(11):
        run.step()
    assert run.tokens == {1: reference(model, PROMPTS[1], 12)}
    assert run.finished == {1: "length"}


def test_rows_of_different_lengths_that_join_and_end_at_different_steps_equal_generate(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(0, 12))
    run.step(join(1, 3), join(2, 9))
    run.step()
    run.step(join(3, 5))
    while len(run.finished) < 4:
        run.step()
    assert run.tokens == {i: reference(model, PROMPTS[i], n) for i, n in ((0, 12), (1, 3), (2, 9), (3, 5))}


def test_a_longer_prompt_joining_moves_the_others_without_changing_them(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(2, 8))
    run.step(join(1, 8))
    while len(run.finished) < 2:
        run.step()
    assert run.tokens == {i: reference(model, PROMPTS[i], 8) for i in (1, 2)}


def test_rows_grow_past_the_first_slab(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(0, 140), join(2, 130))
    while len(run.finished) < 2:
        run.step()
    assert run.tokens == {0: reference(model, PROMPTS[0], 140), 2: reference(model, PROMPTS[2], 130)}


def test_the_cache_shrinks_when_its_longest_row_leaves(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(1, 50), join(2, 50))
    run.step(leaving=[1])
    assert run.engine.columns == 2
    while not run.finished:
        run.step()
    assert run.tokens[2] == reference(model, PROMPTS[2], 50)


def test_a_leaving_row_gets_no_further_token(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(0), join(1))
    run.step(leaving=[0])
    assert [len(run.tokens[0]), len(run.tokens[1])] == [1, 2]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9, seed=42)])
def test_a_preempted_row_resumes_exactly(model: LlamaForCausalLM, sampling: Sampling) -> None:
    whole = Run(model)
    whole.step(join(1, sampling=sampling))
    while not whole.finished:
        whole.step()
    first, resumed = Run(model), Run(model)
    first.step(join(1, sampling=sampling))
    for _ in range(4):
        first.step()
    resumed.step(join(1, sampling=sampling, generated=first.tokens[1]), join(2))
    while 1 not in resumed.finished:
        resumed.step()
    assert first.tokens[1] + resumed.tokens[1] == whole.tokens[1]


def test_an_end_token_stops_the_row(model: LlamaForCausalLM) -> None:
    expected = reference(model, PROMPTS[0], 12)
    run = Run(model, eos=[expected[2]])
    while not run.finished:
        run.step(*([join(0)] if not run.tokens else []))
    assert run.finished == {0: "stop"}
    assert run.tokens[0] == expected[: expected.index(expected[2]) + 1]


def test_reset_drops_every_row(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(0))
    run.engine.reset()
    assert run.engine.step([], []) == []


def test_a_row_that_is_not_a_number_fails_alone(model: LlamaForCausalLM) -> None:
    run = Run(model)
    run.step(join(0), join(1))
    assert run.tokens[0] != run.tokens[1]
    with nan_embedding(model, run.tokens[0][-1]):
        outputs = {output.id: output for output in run.engine.step([], [])}
    assert outputs[0].error is not None
    assert outputs[1].token is not None and outputs[1].error is None
