"""Attention of one new token in each row to its row's own tokens."""

import numpy as np
from numba import prange

from handlers.kernels.compiled import kernel, parallel_kernel
from handlers.kernels.elementwise import exponentiate
from handlers.kernels.types import Floats, Int64s


@parallel_kernel
def attend_rows(
    query: Floats, key: Floats, value: Floats, slab: Floats, layer: int, lengths: Int64s, window: int, out: Floats
) -> None:
    """Stores the keys and values, then attends.

    query, out: [rows, heads, size]; key, value: [rows, key heads, size]; slab: [2, layers, rows or more, key heads,
    columns, size]; lengths: [rows], tokens before the new one. window: tokens that it sees, itself included; 0 for all.
    """
    rows, key_heads, _ = key.shape
    for turn in prange(rows * key_heads):
        row, head = turn // key_heads, turn % key_heads
        keys, values = slab[0, layer, row, head], slab[1, layer, row, head]
        last = lengths[row]
        keys[last] = key[row, head]
        values[last] = value[row, head]
        first = max(0, last + 1 - window) if window else 0
        group = query.shape[1] // key_heads
        mine = slice(head * group, (head + 1) * group)
        _attend_group(query[row, mine], keys[first : last + 1], values[first : last + 1], out[row, mine])


@kernel
def _attend_group(query: Floats, keys: Floats, values: Floats, out: Floats) -> None:
    """The query heads that share a key head. query, out: [group, size]; keys, values: [tokens, size]."""
    group, size = query.shape
    tokens = len(keys)
    scale = np.float32(1 / np.sqrt(size))
    weights = np.empty(tokens, np.float32)
    powers = np.empty(tokens, np.int32)
    for g in range(group):
        highest = np.float32(-np.inf)
        for t in range(tokens):
            score = np.float32(0)
            for i in range(size):
                score += query[g, i] * keys[t, i]
            weights[t] = score * scale
            highest = max(highest, weights[t])
        for t in range(tokens):
            weights[t] -= highest
        exponentiate(weights, powers)
        total = np.float32(0)
        for t in range(tokens):
            total += weights[t]
        out[g] = 0
        for t in range(tokens):
            share = weights[t] / total
            for i in range(size):
                out[g, i] += share * values[t, i]
