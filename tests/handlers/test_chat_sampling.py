"""The next token, by exact numbers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from batching.errors import EngineFailed
from handlers.chat.constraints import Constraint, ConstraintError
from handlers.chat.sampling import Choice, History, sample
from handlers.chat.types import Sampling
from tests.handlers.constraints import Alternating

GREEDY = Sampling(temperature=0)
HALF = math.log(2)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def row_of(
    sampling: Sampling = GREEDY,
    generated: Sequence[int] = (),
    *,
    prompt: Sequence[int] = (),
    eos: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> History:
    row = History(sampling, prompt, frozenset(eos), constraint)
    for token in generated:
        row.add(token)
    return row


def token_of(logits: torch.Tensor, row: History) -> int:
    (chosen,) = sample(logits, [row])
    assert isinstance(chosen, Choice)
    return chosen.token


def draws(logits: torch.Tensor, times: int = 500, **options: Any) -> list[int]:
    """So many tokens at places 0, 1, 2, … of one answer, each from the same logits."""
    rows = [row_of(Sampling(**{"seed": seed, **options})) for seed in range(times)]
    return [chosen.token for chosen in sample(logits.expand(times, -1), rows) if isinstance(chosen, Choice)]


class Witness:
    """A constraint that allows everything, and notes the adjusted logits, which it is the last to see."""

    complete = False

    def __init__(self) -> None:
        self.logits: list[float] = []

    def mask_logits(self, logits: torch.Tensor) -> None:
        self.logits = logits.tolist()

    def accept(self, token: int) -> None:
        """Anything goes."""


def adjusted(
    logits: Sequence[float], sampling: Sampling, generated: Sequence[int] = (), prompt: Sequence[int] = ()
) -> list[float]:
    witness = Witness()
    sample(torch.tensor([logits]), [row_of(sampling, generated, prompt=prompt, constraint=witness)])
    return witness.logits


# Temperature and nucleus


def test_temperature_zero_takes_the_likeliest() -> None:
    assert token_of(logits_of(0.2, 0.5, 0.3), row_of()) == 1


def test_a_vanishing_temperature_is_greedy_and_does_not_overflow() -> None:
    assert token_of(torch.tensor([[1e30, 2e30]]), row_of(Sampling(temperature=1e-30, seed=1))) == 1


def test_draws_follow_the_probabilities() -> None:
    drawn = draws(logits_of(0.1, 0.6, 0.3), 3000)
    assert [drawn.count(token) / 3000 for token in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.64 / 0.68), (2.0, 0.8**0.5 / (0.8**0.5 + 0.2**0.5))])
def test_temperature_sharpens_and_flattens(temperature: float, expected: float) -> None:
    drawn = draws(logits_of(0.2, 0.8), 3000, temperature=temperature)
    assert drawn.count(1) / 3000 == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"min_p": 0.31}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        # Of the two likeliest, 0.5 and 0.3, the first alone is 0.625.
        ({"top_k": 2, "top_p": 0.62}, {0}),
        ({"top_k": 2, "top_p": 0.63}, {0, 1}),
        ({"top_k": 3, "min_p": 0.31}, {0, 1}),
        ({"top_p": 0.96, "min_p": 0.31}, {0, 1}),
    ],
    ids=str,
)
def test_only_these_tokens_are_left_to_draw_from(options: dict[str, Any], left: set[int]) -> None:
    assert set(draws(logits_of(0.5, 0.3, 0.15, 0.05), 300, **options)) == left


def test_what_is_left_keeps_its_proportions() -> None:
    drawn = draws(logits_of(0.5, 0.3, 0.15, 0.05), 3000, top_k=2)
    assert drawn.count(0) / 3000 == pytest.approx(0.625, abs=0.03)


def test_min_p_and_top_p_look_at_the_distribution_after_temperature() -> None:
    logits = logits_of(0.8, 0.2)
    assert set(draws(logits, 300, min_p=0.3, temperature=1.0)) == {0}
    assert set(draws(logits, 300, min_p=0.3, temperature=2.0)) == {0, 1}


@pytest.mark.parametrize("top_p", [0.0, 1e-12, 1e-9])
def test_a_tiny_top_p_still_leaves_one_token(top_p: float) -> None:
    assert draws(logits_of(0.4, 0.6), 3, top_p=top_p) == [1, 1, 1]


@pytest.mark.parametrize("options", [{"top_p": 0.999}, {"min_p": 1e-6}], ids=str)
def test_a_nucleus_wider_than_the_first_candidates_is_found_whole(options: dict[str, Any]) -> None:
    drawn = draws(torch.zeros(1, 5000), 300, **options)
    assert max(drawn) > 1100
    assert len(set(drawn)) > 250


# Penalties and biases


def test_frequency_and_presence_penalties_lower_what_was_generated() -> None:
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted([1.0, 1.0, 1.0, 1.0], sampling, [1, 1, 1, 2], prompt=[0, 0]) == [1.0, -0.75, 0.25, 1.0]


def test_negative_penalties_raise_what_was_generated() -> None:
    assert adjusted([0.0, 0.0], Sampling(frequency_penalty=-1.0, presence_penalty=-0.5), [1, 1]) == [0.0, 2.5]


def test_repetition_penalty_divides_or_multiplies_what_came_in_prompt_and_answer() -> None:
    assert adjusted([3.0, -3.0, 3.0, -3.0], Sampling(repetition_penalty=2.0), [1], [0, 0]) == [1.5, -6.0, 3.0, -3.0]


def test_a_logit_bias_is_added() -> None:
    assert adjusted([1.0, 1.0, 1.0], Sampling(logit_bias={0: -100.0, 2: 1.5})) == [-99.0, 1.0, 2.5]


def test_all_of_them_together_in_this_order() -> None:
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={1: 10.0})
    assert adjusted([4.0, 4.0], sampling, [1, 1], prompt=[0]) == [2.0, 2.0 - 1.25 + 10.0]


def test_the_models_logits_are_left_as_they_are() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    sample(logits, [row_of(Sampling(temperature=0, logit_bias={0: 50.0}))])
    assert logits.tolist() == [[1.0, 2.0]]


def test_one_rows_parameters_do_not_touch_another_row() -> None:
    row = row_of(Sampling(temperature=0, logit_bias={0: 50.0}, frequency_penalty=2.0), [1, 1])
    logits = torch.tensor([[1.0, 2.0]]).expand(3, -1)
    chosen = sample(logits, [row_of(), row, row_of()])
    assert chosen == [Choice(1), Choice(0), Choice(1)]


# Ends


def test_before_min_tokens_no_end_may_come() -> None:
    sampling = Sampling(temperature=0, min_tokens=2, stop_token_ids=(1,))
    logits = logits_of(0.5, 0.3, 0.2)
    assert [token_of(logits, row_of(sampling, [2] * n, eos=[0])) for n in range(4)] == [2, 2, 0, 0]


def test_a_grammar_decides_itself_when_it_may_end() -> None:
    sampling = Sampling(temperature=0, min_tokens=5)
    row = row_of(sampling, eos=[1], constraint=Alternating(1, 0).start())
    assert token_of(logits_of(0.5, 0.3, 0.2), row) == 1


# Log-probabilities


def test_log_probabilities_come_only_where_they_are_wanted() -> None:
    logits = logits_of(0.5, 0.3, 0.2).expand(3, -1)
    rows = [row_of(Sampling(temperature=0, top_logprobs=wanted)) for wanted in (None, 0, 2)]
    none, chosen, top = sample(logits, rows)
    assert none == Choice(0)
    assert isinstance(chosen, Choice) and chosen.top == () and chosen.logprob == pytest.approx(-HALF)
    assert isinstance(top, Choice) and top.logprob == pytest.approx(-HALF)
    assert [token for token, _ in top.top] == [0, 1]
    assert [logprob for _, logprob in top.top] == pytest.approx([-HALF, math.log(0.3)])


def test_log_probabilities_are_of_the_models_own_distribution() -> None:
    sampling = Sampling(
        temperature=0.1,
        top_p=0.5,
        top_k=1,
        frequency_penalty=1.0,
        repetition_penalty=3.0,
        logit_bias={2: 100.0},
        seed=1,
        top_logprobs=1,
    )
    (chosen,) = sample(logits_of(0.5, 0.3, 0.2), [row_of(sampling, [0, 0], prompt=[1])])
    assert isinstance(chosen, Choice)
    assert chosen.token == 2
    assert chosen.logprob == pytest.approx(math.log(0.2))
    ((likeliest, logprob),) = chosen.top
    assert likeliest == 0
    assert logprob == pytest.approx(-HALF)


def test_more_alternatives_than_there_are_tokens_are_all_of_them() -> None:
    (chosen,) = sample(logits_of(0.5, 0.5), [row_of(Sampling(temperature=0, top_logprobs=20))])
    assert isinstance(chosen, Choice) and len(chosen.top) == 2


def test_logits_of_half_precision_give_log_probabilities_of_full() -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    (chosen,) = sample(logits, [row_of(Sampling(temperature=0, top_logprobs=0))])
    assert isinstance(chosen, Choice) and chosen.logprob == pytest.approx(-math.log(1000), abs=1e-5)


# Seeds


def test_a_seed_and_a_position_decide_the_draw_whoever_else_is_in_the_batch() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    row = row_of(Sampling(seed=11), [1, 2, 3, 4])
    others = [row_of(Sampling(seed=1)), row_of(GREEDY, [5]), row_of(Sampling(seed=3, logit_bias={7: 9.0}, top_k=3))]
    assert sample(logits.expand(4, -1), [others[0], row, *others[1:]])[1] == sample(logits, [row])[0]


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    row = row_of(Sampling(seed=11))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = token_of(torch.zeros(1, 1000), row)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert token_of(torch.zeros(1, 1000), row) == first


def test_neighbouring_seeds_and_positions_draw_differently() -> None:
    logits = torch.zeros(1, 10_000)
    drawn = {token_of(logits, row_of(Sampling(seed=seed), [0] * n)) for seed in range(10) for n in range(10)}
    assert len(drawn) > 90


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_every_64_bit_seed_is_taken(seed: int) -> None:
    assert token_of(torch.zeros(1, 4), row_of(Sampling(seed=seed))) in range(4)


# Failures


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.5}, {"logit_bias": {0: 1.0}}], ids=str)
def test_a_row_that_is_not_a_number_fails_and_spoils_no_other(bad: float, options: dict[str, Any]) -> None:
    logits = torch.tensor([[0.0, bad], [1.0, 0.0]])
    failed, chosen = sample(logits, [row_of(Sampling(**{"seed": 1, **options})), row_of()])
    assert isinstance(failed, EngineFailed)
    assert chosen == Choice(0)


def test_masked_tokens_are_allowed_and_never_drawn() -> None:
    assert token_of(torch.tensor([[float("-inf"), 0.0, float("-inf")]]), row_of(Sampling(seed=1))) == 1


def test_a_constraint_that_cannot_go_on_fails_its_row_alone() -> None:
    row = row_of(constraint=Alternating(0, 1, fails_at=0).start())
    failed, chosen = sample(logits_of(0.2, 0.8).expand(2, -1), [row, row_of()])
    assert isinstance(failed, ConstraintError)
    assert chosen == Choice(1)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), Sampling(seed=1, top_p=0.5)], ids=str)
def test_a_constraint_that_leaves_no_token_fails_its_row_alone(sampling: Sampling) -> None:
    """The one token that may come has no chance at all in the model."""
    row = row_of(sampling, constraint=Alternating(0, 1).start())
    failed, chosen = sample(torch.tensor([[float("-inf"), 0.0], [0.0, 1.0]]), [row, row_of()])
    assert isinstance(failed, ConstraintError)
    assert chosen == Choice(1)


def test_a_constraint_masks_what_a_bias_wants() -> None:
    row = row_of(Sampling(temperature=0, logit_bias={1: 100.0}), constraint=Alternating(0, 1).start())
    assert token_of(logits_of(0.2, 0.8), row) == 0
