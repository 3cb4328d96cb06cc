"""A layer of the Llama family for few rows, in two calls with attention between them."""

import numpy as np
from numba import prange

from handlers.kernels.compiled import parallel_kernel
from handlers.kernels.elementwise import gate, normalize, rotate
from handlers.kernels.product import add_product
from handlers.kernels.types import Floats, Panels

_COLUMNS = 256


@parallel_kernel
def before_attention(
    hidden: Floats,
    norm: Floats,
    eps: float,
    weight: Panels,
    scales: Floats,
    bias: Floats,
    query_norm: Floats,
    key_norm: Floats,
    cos: Floats,
    sin: Floats,
    normed: Floats,
    query: Floats,
    key: Floats,
    value: Floats,
) -> None:
    """Norm, projection, rotation.

    hidden, normed: [rows, size]; weight: panels of (heads + 2 * key heads) * head size outputs; bias, query_norm,
    key_norm: empty if there is none; cos, sin: [rows, head size]; query: [rows, heads, head size]; key, value: [rows,
    key heads, head size].
    """
    rows, heads, head_size = query.shape
    keys_at = heads * head_size
    values_at = keys_at + key.shape[1] * head_size
    normalize(hidden, norm, eps, normed)
    mixed = np.zeros((rows, len(scales)), np.float32)
    add_product(normed, weight, scales, mixed)
    for m in prange(rows):
        if len(bias):
            mixed[m] += bias
        query[m] = mixed[m, :keys_at].reshape((heads, head_size))
        key[m] = mixed[m, keys_at:values_at].reshape(key[m].shape)
        value[m] = mixed[m, values_at:].reshape(value[m].shape)
        if len(query_norm):
            normalize(query[m], query_norm, eps, query[m])
            normalize(key[m], key_norm, eps, key[m])
        rotate(query[m], cos[m], sin[m])
        rotate(key[m], cos[m], sin[m])


@parallel_kernel
def after_attention(
    attended: Floats,
    hidden: Floats,
    out_weight: Panels,
    out_scales: Floats,
    norm: Floats,
    eps: float,
    gate_up_weight: Panels,
    gate_up_scales: Floats,
    down_weight: Panels,
    down_scales: Floats,
    normed: Floats,
) -> None:
    """Adds to `hidden`, [rows, size], what attention found, and then the layer's perceptron. attended: [rows, in]."""
    rows, size = len(hidden), len(gate_up_scales) // 2
    add_product(attended, out_weight, out_scales, hidden)
    normalize(hidden, norm, eps, normed)
    both = np.zeros((rows, 2 * size), np.float32)
    add_product(normed, gate_up_weight, gate_up_scales, both)
    gated = np.empty((rows, size), np.float32)
    for turn in prange((size + _COLUMNS - 1) // _COLUMNS):
        first = turn * _COLUMNS
        last = min(first + _COLUMNS, size)
        gate(both, gated, first, last, np.empty(last - first, np.int32))
    add_product(gated, down_weight, down_scales, hidden)
