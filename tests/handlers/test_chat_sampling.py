import pytest
import torch

from handlers.chat.sampling import sample
from handlers.chat.types import Sampling

GREEDY = Sampling(temperature=0)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(logits_of(0.2, 0.5, 0.3), [GREEDY], [0]) == [1]


def test_a_vanishing_temperature_is_greedy_and_does_not_overflow() -> None:
    assert sample(torch.tensor([[1e30, 2e30]]), [Sampling(temperature=1e-30, seed=1)], [0]) == [1]


def test_draws_follow_the_probabilities() -> None:
    logits = logits_of(0.1, 0.6, 0.3)
    drawn = [sample(logits, [Sampling(seed=7)], [position])[0] for position in range(3000)]
    assert [drawn.count(token) / 3000 for token in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    logits = logits_of(0.2, 0.8)
    for temperature, expected in ((0.5, 0.64 / 0.68), (2.0, 0.8**0.5 / (0.8**0.5 + 0.2**0.5))):
        drawn = [sample(logits, [Sampling(temperature, seed=3)], [i])[0] for i in range(3000)]
        assert drawn.count(1) / 3000 == pytest.approx(expected, abs=0.03)


def test_top_p_leaves_the_fewest_likely_tokens_that_reach_it() -> None:
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    drawn = {sample(logits, [Sampling(top_p=0.7, seed=5)], [i])[0] for i in range(500)}
    assert drawn == {0, 1}


def test_a_tiny_top_p_still_leaves_one_token() -> None:
    for top_p in (0.0, 1e-12, 1e-9):
        assert sample(logits_of(0.4, 0.6), [Sampling(top_p=top_p, seed=5)], [0]) == [1]


def test_a_seed_and_a_position_decide_the_draw_whoever_else_is_in_the_batch() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    alone = sample(logits, [Sampling(seed=11)], [4])
    together = sample(logits.expand(3, -1), [Sampling(seed=1), Sampling(seed=11), GREEDY], [0, 4, 9])
    assert together[1] == alone[0]


def test_neighbouring_seeds_and_positions_draw_differently() -> None:
    logits = torch.zeros(1, 10_000)
    drawn = {sample(logits, [Sampling(seed=seed)], [position])[0] for seed in range(10) for position in range(10)}
    assert len(drawn) > 90


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_a_number_gets_no_token_and_spoils_no_other(bad: float) -> None:
    logits = torch.tensor([[0.0, bad], [1.0, 0.0]])
    rows = [Sampling(seed=1), Sampling(temperature=0)]
    assert sample(logits, rows, [0, 0]) == [None, 0]


def test_masked_tokens_are_allowed_and_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    assert sample(logits, [Sampling(seed=1)], [0]) == [1]


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_every_64_bit_seed_is_taken(seed: int) -> None:
    assert sample(torch.zeros(1, 4), [Sampling(seed=seed)], [0])[0] in range(4)
