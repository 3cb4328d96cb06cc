"""Prompts that come again: whole blocks, only after the same beginning, the oldest forgotten first."""

import pytest
import torch

from handlers.chat.prefix_cache import BLOCK, PrefixCache

A_BLOCK = 2 * 1 * 1 * BLOCK * 1 * 4
"""Bytes."""


def states_of(tokens: int, first: float = 0.0) -> torch.Tensor:
    return (first + torch.arange(tokens, dtype=torch.float32)).expand(2, 1, 1, tokens)[..., None].clone()


def prompt(*kinds: int, rest: int = 0) -> list[int]:
    """A block of each kind, and some tokens that are no whole block."""
    return [kind for kind in kinds for _ in range(BLOCK)] + [99] * rest


def cache_of(*prompts: list[int], blocks: int = 100, salt: str = "") -> PrefixCache:
    cache = PrefixCache(blocks * A_BLOCK)
    for i, token_ids in enumerate(prompts):
        cache.insert(token_ids, salt, states_of(len(token_ids), 1000.0 * i))
    return cache


def matched(cache: PrefixCache, token_ids: list[int], salt: str = "") -> int:
    return sum(block.shape[3] for block in cache.match(token_ids, salt))


def test_what_was_kept_is_found_as_it_was() -> None:
    cache = cache_of(prompt(1, 2, 3, rest=5))
    found = torch.cat(cache.match(prompt(1, 2, 3, rest=9), ""), dim=3)
    assert torch.equal(found, states_of(3 * BLOCK))
    assert cache.bytes == 3 * A_BLOCK


def test_what_was_kept_is_a_copy() -> None:
    cache, states = PrefixCache(10 * A_BLOCK), states_of(BLOCK)
    cache.insert(prompt(1), "", states)
    states.fill_(-1.0)
    assert torch.equal(cache.match(prompt(1, rest=1), "")[0], states_of(BLOCK))


@pytest.mark.parametrize(
    ("token_ids", "tokens"),
    [
        (prompt(1, 2, 3, rest=1), 3 * BLOCK),
        (prompt(1, 2, 3), 2 * BLOCK),  # the last token has to be computed
        (prompt(1, 2, rest=31), 2 * BLOCK),
        (prompt(1, 2)[:-1], BLOCK),
        (prompt(1)[:-1], 0),
        (prompt(1, 3, 2), BLOCK),
        (prompt(2, 1, 3), 0),
        (prompt(3, rest=1), 0),
        ([1], 0),
        ([], 0),
    ],
)
def test_only_whole_blocks_after_the_same_beginning_match(token_ids: list[int], tokens: int) -> None:
    assert matched(cache_of(prompt(1, 2, 3)), token_ids) == tokens


def test_a_salt_keeps_prompts_apart() -> None:
    cache = cache_of(prompt(1, rest=1), salt="a")
    assert [matched(cache, prompt(1, rest=1), salt) for salt in ("a", "b", "")] == [BLOCK, 0, 0]


def test_token_ids_are_not_taken_for_their_digits() -> None:
    cache = cache_of([1, 23] * 16 + [0])
    assert matched(cache, [12, 3] * 16 + [0]) == 0


def test_a_block_that_is_there_is_not_kept_twice() -> None:
    cache = cache_of(prompt(1, 2), prompt(1, 2), prompt(1, 3))
    assert (len(cache), cache.bytes) == (3, 3 * A_BLOCK)


def test_without_memory_nothing_is_kept() -> None:
    cache = cache_of(prompt(1, 2), blocks=0)
    assert (len(cache), cache.bytes, matched(cache, prompt(1, 2))) == (0, 0, 0)


def test_the_least_recently_used_go_first() -> None:
    cache = cache_of(prompt(1), prompt(2), prompt(3), blocks=3)
    assert matched(cache, prompt(1, rest=1)) == BLOCK
    cache.insert(prompt(4), "", states_of(BLOCK))
    assert [matched(cache, prompt(kind, rest=1)) for kind in (1, 2, 3, 4)] == [BLOCK, 0, BLOCK, BLOCK]


def test_of_one_prompt_the_end_goes_first() -> None:
    cache = cache_of(prompt(1, 2, 3), prompt(4), blocks=3)
    assert matched(cache, prompt(1, 2, 3, rest=1)) == 2 * BLOCK
    assert matched(cache, prompt(4, rest=1)) == BLOCK


def test_of_a_prompt_larger_than_the_memory_the_beginning_stays() -> None:
    cache = cache_of(prompt(1, 2, 3, 4, 5), blocks=2)
    assert (matched(cache, prompt(1, 2, 3, 4, 5)), cache.bytes) == (2 * BLOCK, 2 * A_BLOCK)


def test_clearing_forgets_everything() -> None:
    cache = cache_of(prompt(1, 2))
    cache.clear()
    assert (len(cache), cache.bytes, matched(cache, prompt(1, 2))) == (0, 0, 0)
