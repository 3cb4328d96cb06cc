"""The step engine: rows of a batch are as if each were alone, whatever joins, leaves, fails or is shared."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig as TransformersLlamaConfig
from transformers import PreTrainedModel

from batching.errors import EngineFailed
from handlers.chat import budget
from handlers.chat.constraints import ConstraintError
from handlers.chat.llama import LlamaModel
from handlers.chat.packed import PackedBatch, PackedModel
from handlers.chat.types import Sampling
from tests.handlers.constraints import Alternating
from tests.handlers.engines import (
    GREEDY,
    Run,
    TellingModel,
    alone,
    causal_model,
    engine_of,
    entry,
    fast_copy,
    general_copy,
    generate,
)

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12], [100], [20 + i % 60 for i in range(70)]]
RANDOM = Sampling(temperature=1.5, top_p=0.9, seed=42)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return causal_model(
        TransformersLlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.5,
        )
    )


@pytest.fixture(scope="module", params=["fast", "general"])
def model(request: pytest.FixtureRequest, reference: PreTrainedModel) -> PackedModel:
    copies: dict[str, Callable[[PreTrainedModel], PackedModel]] = {"fast": fast_copy, "general": general_copy}
    return copies[request.param](reference)


@pytest.fixture
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompt tokens a step, one beside running answers."""
    monkeypatch.setattr(budget, "_MOST", 3)
    monkeypatch.setattr(budget, "_LEAST", 1)


# Against transformers


def test_a_row_alone_equals_generate(model: PackedModel, reference: PreTrainedModel) -> None:
    for prompt in PROMPTS:
        assert alone(model, prompt) == generate(reference, prompt, 12)


def test_rows_that_join_and_end_at_different_steps_equal_generate(
    model: PackedModel, reference: PreTrainedModel
) -> None:
    run = Run(engine_of(model))
    run.step(entry(0, PROMPTS[0], 12))
    run.step(entry(1, PROMPTS[1], 3), entry(2, PROMPTS[2], 9))
    run.step()
    run.until_done(entry(3, PROMPTS[3], 5))
    assert run.tokens == {i: generate(reference, PROMPTS[i], n) for i, n in ((0, 12), (1, 3), (2, 9), (3, 5))}
    assert set(run.finished.values()) == {"length"}


def test_rows_that_outgrow_their_bucket_equal_generate(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model))
    run.until_done(entry(0, PROMPTS[0], 140), entry(2, PROMPTS[2], 130), entry(3, PROMPTS[3], 70))
    assert run.tokens == {i: generate(reference, PROMPTS[i], n) for i, n in ((0, 140), (2, 130), (3, 70))}


@pytest.mark.usefixtures("tiny_budget")
def test_prompts_computed_in_tiny_chunks_equal_generate(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model))
    run.step(entry(1, PROMPTS[1], 60))
    assert run.given == {}
    run.until_done(entry(3, PROMPTS[3], 20), entry(0, PROMPTS[0], 20))
    assert run.tokens == {i: generate(reference, PROMPTS[i], n) for i, n in ((0, 20), (1, 60), (3, 20))}


def test_a_preempted_row_goes_on_as_generate_would(model: PackedModel, reference: PreTrainedModel) -> None:
    first, resumed = Run(engine_of(model)), Run(engine_of(model))
    first.step(entry(1, PROMPTS[1]), entry(0, PROMPTS[0]))
    for _ in range(4):
        first.step()
    resumed.until_done(entry(1, PROMPTS[1], generated=first.given[1]), entry(2, PROMPTS[2]))
    assert first.tokens[1] + resumed.tokens[1] == generate(reference, PROMPTS[1], 12)
    assert resumed.tokens[2] == generate(reference, PROMPTS[2], 12)


def test_a_prompt_that_begins_as_one_before_equals_generate(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    run.until_done(entry(0, PROMPTS[3]))
    longer = PROMPTS[3][:64] + [1, 2, 3]
    run.until_done(entry(1, longer), entry(2, PROMPTS[3]))
    assert [run.given[id][0].cached_tokens for id in (0, 1, 2)] == [0, 64, 64]
    assert run.tokens[1] == generate(reference, longer, 12)
    assert run.tokens[2] == generate(reference, PROMPTS[3], 12)


def test_a_conversation_finds_its_own_answer_in_the_cache(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    run.until_done(entry(0, PROMPTS[3], 30))
    conversation = PROMPTS[3] + run.tokens[0] + [7, 7]
    run.until_done(entry(1, conversation))
    assert run.given[1][0].cached_tokens == 96
    assert run.tokens[1] == generate(reference, conversation, 12)


def test_rows_that_share_a_prompt_compute_it_once(model: PackedModel, reference: PreTrainedModel) -> None:
    run = Run(engine_of(model))
    shared = PROMPTS[3]
    run.until_done(*(entry(i, shared, sampling=Sampling(temperature=1, seed=i)) for i in range(3)), entry(3, shared))
    assert run.tokens[3] == generate(reference, shared, 12)
    for i in range(3):
        assert run.tokens[i] == alone(model, shared, sampling=Sampling(temperature=1, seed=i))


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM])
def test_a_preempted_row_resumes_exactly(model: PackedModel, sampling: Sampling) -> None:
    first, resumed = Run(engine_of(model)), Run(engine_of(model))
    first.step(entry(1, PROMPTS[1], sampling=sampling))
    for _ in range(4):
        first.step()
    resumed.until_done(entry(1, PROMPTS[1], sampling=sampling, generated=first.given[1]), entry(2, PROMPTS[2]))
    assert first.tokens[1] + resumed.tokens[1] == alone(model, PROMPTS[1], sampling=sampling)


def test_a_random_answer_does_not_depend_on_its_neighbours(model: PackedModel) -> None:
    together = Run(engine_of(model)).until_done(*(entry(i, prompt, 12, RANDOM) for i, prompt in enumerate(PROMPTS)))
    assert together == {i: alone(model, prompt, 12, RANDOM) for i, prompt in enumerate(PROMPTS)}


def test_the_log_probabilities_of_a_prompt_are_those_of_the_model(
    model: PackedModel, reference: PreTrainedModel
) -> None:
    run = Run(engine_of(model))
    sampling = Sampling(temperature=0, top_logprobs=2)
    run.until_done(entry(0, PROMPTS[0]), entry(1, PROMPTS[1], 2, sampling, prompt_logprobs=2))
    first, *rest = run.given[1][0].prompt
    logprobs = torch.log_softmax(reference(torch.tensor([PROMPTS[1]])).logits[0], dim=-1)
    assert (first.token, first.logprob, first.top) == (PROMPTS[1][0], None, ())
    assert [choice.token for choice in rest] == PROMPTS[1][1:]
    for place, choice in enumerate(rest):
        assert choice.logprob == pytest.approx(float(logprobs[place, choice.token]), abs=1e-3)
        assert [token for token, _ in choice.top] == logprobs[place].topk(2).indices.tolist()
    chosen = run.given[1][0].choice
    assert chosen.logprob == pytest.approx(float(logprobs[-1].max()), abs=1e-3)
    assert run.given[1][1].prompt == ()


# Rows come and go


def test_a_leaving_row_gets_no_further_token() -> None:
    run = Run(engine_of(TellingModel()))
    run.step(entry(0, [1]), entry(1, [2]))
    run.step(leaving=[0])
    assert [len(run.tokens[0]), len(run.tokens[1])] == [1, 2]


def test_who_leaves_without_having_been_there_changes_nothing() -> None:
    run = Run(engine_of(TellingModel()))
    assert run.step(leaving=[7]) == []
    assert run.step(entry(0, [1]), leaving=[7]) == [0]


def test_a_row_may_leave_in_the_step_in_which_another_joins() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    run.step(entry(0, [1, 2]), entry(1, [3]), entry(2, [4, 5, 6]))
    run.step(entry(3, [7, 8]), leaving=[1])
    assert {id: tokens for id, tokens in run.until_done().items() if id != 1} == {
        0: model.answer([1, 2], 12),
        2: model.answer([4, 5, 6], 12),
        3: model.answer([7, 8], 12),
    }


@pytest.mark.usefixtures("tiny_budget")
@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_whoever_of_a_shared_prompt_leaves_while_it_is_computed_the_others_go_on(leaver: int) -> None:
    model, shared = TellingModel(), list(range(10))
    run = Run(engine_of(model))
    run.step(*(entry(i, shared) for i in range(3)))
    run.step(leaving=[leaver])
    run.until_done()
    assert run.tokens == {i: model.answer(shared, 12) for i in range(3) if i != leaver}
    assert [chunks for _, chunks in model.forwards if chunks] == [[3], [3], [3], [1]]


@pytest.mark.usefixtures("tiny_budget")
def test_a_prompt_whose_every_row_has_left_is_not_computed_any_further() -> None:
    run = Run(engine_of(TellingModel()))
    shared = list(range(10))
    run.step(entry(0, shared), entry(1, shared))
    assert run.engine.cache_bytes > 0
    assert run.step(leaving=[0, 1]) == []
    assert run.engine.cache_bytes == 0


@pytest.mark.usefixtures("tiny_budget")
def test_a_row_that_comes_while_its_prompt_is_computed_shares_what_is_done() -> None:
    model, shared = TellingModel(), list(range(10))
    run = Run(engine_of(model))
    run.step(entry(0, shared))
    run.until_done(entry(1, shared))
    assert run.tokens == {i: model.answer(shared, 12) for i in range(2)}
    assert sum(sum(chunks) for _, chunks in model.forwards) == 10


def test_a_row_that_was_preempted_shares_nothing_with_a_fresh_one() -> None:
    model, shared = TellingModel(), list(range(10))
    before = Run(engine_of(model))
    before.step(entry(0, shared))
    before.step()
    run = Run(engine_of(model))
    run.until_done(entry(0, shared, generated=before.given[0]), entry(1, shared))
    assert before.tokens[0] + run.tokens[0] == run.tokens[1] == model.answer(shared, 12)


@pytest.mark.usefixtures("tiny_budget")
def test_running_answers_get_their_token_in_every_step_beside_a_long_prompt() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    run.step(entry(0, [1, 2], 40))
    run.step(entry(1, list(range(20))))
    for _ in range(5):
        assert 0 in run.step()
    assert 1 not in run.given
    assert run.until_done() == {0: model.answer([1, 2], 40), 1: model.answer(range(20), 12)}


def test_a_resumed_row_does_not_tell_about_its_prompt_again() -> None:
    model, prompt = TellingModel(), list(range(40))
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    run.step(entry(0, prompt, prompt_logprobs=0))
    told = run.given[0][0]
    assert len(told.prompt) == 40
    run.step(leaving=[0])
    resumed = Run(run.engine)
    resumed.until_done(entry(1, prompt, prompt_logprobs=0, generated=run.given[0]))
    assert [(token.prompt, token.cached_tokens) for token in resumed.given[1]] == [((), 0)] * 11


# Ends


def test_an_end_token_stops_the_row() -> None:
    model = TellingModel()
    answer = model.answer([1, 2], 12)
    run = Run(engine_of(model, eos=[answer[2]]))
    assert run.until_done(entry(0, [1, 2]))[0] == answer[: answer.index(answer[2]) + 1]
    assert run.finished == {0: "stop"}


def test_an_end_token_that_is_to_be_ignored_does_not() -> None:
    model = TellingModel()
    run = Run(engine_of(model, eos=range(97)))
    assert run.until_done(entry(0, [1, 2], sampling=Sampling(temperature=0, ignore_eos=True))) == {
        0: model.answer([1, 2], 12)
    }
    assert run.finished == {0: "length"}


def test_a_stop_token_ends_the_row_even_where_end_tokens_are_ignored() -> None:
    model = TellingModel()
    answer = model.answer([1, 2], 12)
    sampling = Sampling(temperature=0, ignore_eos=True, stop_token_ids=(answer[3],))
    run = Run(engine_of(model))
    assert run.until_done(entry(0, [1, 2], sampling=sampling))[0] == answer[: answer.index(answer[3]) + 1]
    assert run.finished == {0: "stop"}


def test_no_end_comes_before_min_tokens() -> None:
    model = TellingModel()
    eos = model.answer([1, 2], 1)
    run = Run(engine_of(model, eos=eos))
    tokens = run.until_done(entry(0, [1, 2], sampling=Sampling(temperature=0, min_tokens=4)))[0]
    assert len(tokens) >= 5
    assert eos[0] not in tokens[:4]


def test_one_token_is_an_answer_too() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    assert run.step(entry(0, [1, 2], 1)) == [0]
    assert (run.tokens, run.finished) == ({0: model.answer([1, 2], 1)}, {0: "length"})
    assert run.engine.cache_bytes == 0


def test_the_end_of_a_grammar_ends_the_row() -> None:
    run = Run(engine_of(TellingModel()))
    tokens = run.until_done(entry(0, [1], grammar=Alternating(3, 5, length=4)), entry(1, [2]))[0]
    assert (tokens, run.finished[0]) == ([3, 5, 3, 5], "stop")


def test_a_preempted_row_goes_on_within_its_grammar() -> None:
    grammar = Alternating(3, 5, length=4)
    first, resumed = Run(engine_of(TellingModel())), Run(engine_of(TellingModel()))
    first.step(entry(0, [1], grammar=grammar))
    resumed.until_done(entry(0, [1], grammar=grammar, generated=first.given[0]))
    assert first.tokens[0] + resumed.tokens[0] == [3, 5, 3, 5]


# Failures


def test_a_grammar_that_cannot_go_on_fails_its_row_alone() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    run.until_done(entry(0, [1], grammar=Alternating(3, 5, fails_at=2)), entry(1, [2]))
    assert run.tokens == {0: [3, 5], 1: model.answer([2], 12)}
    assert isinstance(run.errors[0], ConstraintError)


def test_a_grammar_that_refuses_what_was_drawn_fails_its_row_alone() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    run.until_done(entry(0, [1], grammar=Alternating(3, 5, refuses_at=2)), entry(1, [2]))
    assert run.tokens == {0: [3, 5], 1: model.answer([2], 12)}
    assert isinstance(run.errors[0], ConstraintError)


def test_a_grammar_that_cannot_be_taken_up_again_fails_its_row_alone() -> None:
    model, grammar = TellingModel(), Alternating(3, 5)
    before = Run(engine_of(model))
    before.step(entry(0, [1], grammar=grammar))
    run = Run(engine_of(model))
    run.until_done(entry(0, [1], grammar=Alternating(3, 5, refuses_at=0), generated=before.given[0]), entry(1, [2]))
    assert run.tokens == {1: model.answer([2], 12)}
    assert isinstance(run.errors[0], ConstraintError)


@pytest.mark.parametrize("joined_before", [True, False], ids=["running", "joining"])
def test_a_row_that_is_not_a_number_fails_alone_and_leaves_nothing(joined_before: bool) -> None:
    model = TellingModel(poison=50)
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    if joined_before:
        run.step(entry(1, [2, 3]))
    run.until_done(entry(0, [0] * 40 + [50]), *([] if joined_before else [entry(1, [2, 3])]))
    assert isinstance(run.errors[0], EngineFailed)
    assert run.tokens == {1: TellingModel().answer([2, 3], 12)}
    assert run.until_done(entry(2, [0] * 40))[2] == TellingModel().answer([0] * 40, 12)
    assert run.given[2][0].cached_tokens == 0


def test_what_a_row_that_is_not_a_number_leaves_behind_spoils_no_later_one(
    reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fast_copy(reference)
    run = Run(engine_of(model))
    run.step(entry(0, PROMPTS[3], 40), entry(1, PROMPTS[0], 40))
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda batch: _spoiled(LlamaModel.forward(model, batch), batch, 0))
        run.step()
    assert list(run.errors) == [0]
    run.until_done(entry(2, PROMPTS[2], 40), entry(3, PROMPTS[3], 40))
    assert run.tokens == {
        0: generate(reference, PROMPTS[3], 1),
        1: generate(reference, PROMPTS[0], 40),
        2: generate(reference, PROMPTS[2], 40),
        3: generate(reference, PROMPTS[3], 40),
    }


def _spoiled(logits: torch.Tensor, batch: PackedBatch, row: int) -> torch.Tensor:
    """As if nothing about that row, the first, were a number."""
    (group,) = batch.decodes
    assert group.bucket.owners[0] == row
    group.bucket.slab[:, :, 0] = float("nan")
    logits[0] = float("nan")
    return logits


def test_memory_that_was_not_a_number_before_spoils_no_row(
    reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fresh memory holds is up to chance; here it holds the worst."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))
    run = Run(engine_of(fast_copy(reference)))
    run.until_done(*(entry(i, prompt) for i, prompt in enumerate(PROMPTS)))
    assert run.errors == {}
    assert run.tokens == {i: generate(reference, prompt, 12) for i, prompt in enumerate(PROMPTS)}


def test_reset_drops_every_row_and_all_that_was_kept() -> None:
    model, prompt = TellingModel(), [*range(40)]
    run = Run(engine_of(model, prefix_cache_bytes=1 << 20))
    run.until_done(entry(0, prompt))
    run.step(entry(1, prompt))
    run.engine.reset()
    assert (run.engine.cache_bytes, run.step()) == (0, [])
    assert run.until_done(entry(2, prompt))[2] == model.answer(prompt, 12)
    assert run.given[2][0].cached_tokens == 0


def test_after_a_failed_step_and_a_reset_the_rows_resume() -> None:
    model = TellingModel()
    run = Run(engine_of(model))
    run.step(entry(0, [1, 2]), entry(1, [3]))
    model.fails = MemoryError()
    with pytest.raises(MemoryError):
        run.step()
    model.fails = None
    run.engine.reset()
    run.until_done(entry(0, [1, 2], generated=run.given[0]), entry(1, [3], generated=run.given[1]))
    assert run.tokens == {0: model.answer([1, 2], 12), 1: model.answer([3], 12)}


def test_prompts_are_shared_only_under_the_same_salt() -> None:
    prompt = [*range(40)]
    run = Run(engine_of(TellingModel(), prefix_cache_bytes=1 << 20))
    run.until_done(entry(0, prompt, cache_salt="a"))
    run.until_done(entry(1, list(prompt), cache_salt="b"), entry(2, list(prompt), cache_salt="a"))
    assert [run.given[id][0].cached_tokens for id in range(3)] == [0, 0, 32]


# Any order


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[tuple[int, int]], list[int]]]:
    """Steps: who joins, as (prompt, tokens), and which of those that have come (modulo how many) leave."""
    joining = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 20)), max_size=3)
    return draw(st.lists(st.tuples(joining, st.lists(st.integers(0, 9), max_size=2)), max_size=20))


SHARED = [[*range(i, i + length)] for i, length in enumerate((1, 3, 31, 32, 33, 64, 120, 129))]


@settings(max_examples=120)
@given(histories(), st.sampled_from([0, 600, 1 << 20]), st.sampled_from([1, 7, 512]))
def test_in_any_order_every_row_is_as_if_alone_and_nothing_stays(
    history: Sequence[tuple[list[tuple[int, int]], list[int]]], prefix_cache_bytes: int, most: int
) -> None:
    model = TellingModel()
    run = Run(engine_of(model, prefix_cache_bytes=prefix_cache_bytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_MOST", most)
        patch.setattr(budget, "_LEAST", 1)
        came: list[tuple[int, int]] = []
        left: set[int] = set()
        for joining, leaving in history:
            gone = [id % len(came) for id in leaving if came]
            left |= {id for id in gone if id not in run.finished}
            entries = [entry(len(came) + i, SHARED[prompt], n) for i, (prompt, n) in enumerate(joining)]
            came += joining
            run.step(*entries, leaving=gone)
        run.until_done()
    for id, (prompt, n) in enumerate(came):
        tokens = run.tokens.get(id, [])
        assert tokens == model.answer(SHARED[prompt], len(tokens))
        assert len(tokens) == n or id in left
    assert run.engine.step([], []) == []
    assert run.engine._prefixes.bytes <= prefix_cache_bytes
    assert (run.engine._rows, run.engine._prefills) == ({}, [])
