"""The memory of running rows: every row finds its own, and what nobody needs is given back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.chat.kv_cache import KVCache, KVShape

SHAPE = KVShape(layers=2, heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def states_of(row: int, tokens: int) -> torch.Tensor:
    """Numbers that no other row has."""
    return torch.arange(tokens, dtype=torch.float32)[:, None] + torch.full((2, 2, 3, 1, 4), 1000.0 * row)


def sizes(cache: KVCache) -> dict[int, list[int]]:
    """Who is in which bucket."""
    return {bucket.columns: bucket.owners for bucket in cache}


def test_a_shape_knows_what_a_token_takes() -> None:
    assert SHAPE.bytes_per_token == 2 * 2 * 3 * 4 * 4
    assert SHAPE.empty(5, 7).nbytes == 5 * 7 * SHAPE.bytes_per_token


def test_an_empty_cache_holds_nothing() -> None:
    cache = KVCache(SHAPE)
    assert (cache.bytes, sizes(cache)) == (0, {})


def test_a_row_is_found_as_it_was_put() -> None:
    cache = KVCache(SHAPE)
    for row in range(9):
        cache.add(row, states_of(row, 10 + row))
    for row in range(9):
        assert torch.equal(cache.states(row, 10 + row), states_of(row, 10 + row))


@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (127, 128), (128, 256), (255, 256), (256, 512)])
def test_a_row_goes_where_it_has_room_for_one_more_token(tokens: int, columns: int) -> None:
    cache = KVCache(SHAPE)
    cache.add(0, states_of(0, tokens))
    assert sizes(cache) == {columns: [0]}


def test_a_row_that_outgrows_its_bucket_moves_on_with_all_it_has() -> None:
    cache = KVCache(SHAPE)
    for row in range(3):
        cache.add(row, states_of(row, 127))
    cache.reserve(1, 127)
    assert sizes(cache) == {128: [0, 1, 2]}
    cache.states(1, 128)[..., 127, :] = 1127.0
    cache.reserve(1, 128)
    assert sizes(cache) == {128: [0, 2], 256: [1]}
    assert torch.equal(cache.states(1, 128), states_of(1, 128))
    assert torch.equal(cache.states(2, 127), states_of(2, 127))


def test_buckets_come_from_the_smallest_to_the_largest_and_never_empty() -> None:
    cache = KVCache(SHAPE)
    for row, tokens in enumerate((300, 5, 140)):
        cache.add(row, states_of(row, tokens))
    assert [bucket.columns for bucket in cache] == [128, 256, 512]
    cache.remove(2)
    assert [bucket.columns for bucket in cache] == [128, 512]


def test_the_last_row_takes_the_place_of_one_that_leaves() -> None:
    cache = KVCache(SHAPE)
    for row in range(3):
        cache.add(row, states_of(row, 20))
    cache.remove(0)
    assert sizes(cache) == {128: [2, 1]}
    assert torch.equal(cache.states(2, 20), states_of(2, 20))


def test_memory_is_given_back_as_rows_leave() -> None:
    cache = KVCache(SHAPE)
    a_row = 128 * SHAPE.bytes_per_token
    for row in range(9):
        cache.add(row, states_of(row, 20))
    assert cache.bytes == 12 * a_row
    for row in range(5):
        cache.remove(row)
    assert cache.bytes == 4 * a_row
    for row in range(5, 9):
        cache.remove(row)
    assert cache.bytes == 0


def test_removing_a_row_that_is_not_there_does_nothing() -> None:
    cache = KVCache(SHAPE)
    cache.add(0, states_of(0, 3))
    cache.remove(7)
    cache.remove(0)
    cache.remove(0)
    assert cache.bytes == 0


def test_a_row_brings_nothing_of_its_place_with_it() -> None:
    """What lay there before is masked, but NaN shows through every mask."""
    cache = KVCache(SHAPE)
    cache.add(0, states_of(0, 20))
    cache.add(1, torch.full((2, 2, 3, 60, 4), float("nan")))
    cache.remove(1)
    cache.add(2, states_of(2, 10))
    (bucket,) = cache
    assert not bucket.slab[:, :, :2].isnan().any()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("add grow remove".split()), st.integers(0, 20), st.integers(1, 200))))
def test_in_any_order_rows_keep_their_own(changes: list[tuple[str, int, int]]) -> None:
    cache = KVCache(SHAPE)
    lengths: dict[int, int] = {}
    for number, (change, which, tokens) in enumerate(changes):
        if change == "add":
            cache.add(number, states_of(number, tokens))
            lengths[number] = tokens
        elif lengths:
            row = list(lengths)[which % len(lengths)]
            if change == "remove":
                cache.remove(row)
                del lengths[row]
            else:
                cache.reserve(row, lengths[row])
                cache.states(row, lengths[row] + 1)[..., -1, :] = 1000.0 * row + lengths[row]
                lengths[row] += 1
    assert sorted(owner for bucket in cache for owner in bucket.owners) == sorted(lengths)
    for row, tokens in lengths.items():
        assert torch.equal(cache.states(row, tokens), states_of(row, tokens))
        cache.remove(row)
    assert cache.bytes == 0
