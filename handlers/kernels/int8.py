"""Rows times a matrix of 8-bit weights: w[n, k] = int8[n, k] * scales[n].

A product of few rows is a matter of reading the weights, so they stay in 8 bits until they are in a register; for more,
a block of them is made float once and stays in the cache. Four outputs and up to three rows are multiplied at a time:
twelve sums, which hide the latency of a multiply-add and leave registers for what is multiplied (Goto, van de Geijn,
Anatomy of High-Performance Matrix Multiplication, 2008).
"""

import numpy as np
from numba import prange

from handlers.kernels.compiled import kernel, parallel_kernel
from handlers.kernels.types import Floats, Int8s

_BLOCK = 32
"""Outputs of one turn: few enough to be shared evenly, and as many as keep their weights in the cache."""

_FEW = 4
"""Rows for which making the weights float costs more than it saves."""


@kernel
def _three_rows(x: Floats, w: Floats | Int8s, scales: Floats, out: Floats, m: int, n: int) -> None:
    """out[m : m + 3, n : n + 4] += …"""
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = np.float32(0)
    for k in range(x.shape[1]):
        a, b = np.float32(w[n, k]), np.float32(w[n + 1, k])
        c, d = np.float32(w[n + 2, k]), np.float32(w[n + 3, k])
        x0, x1, x2 = x[m, k], x[m + 1, k], x[m + 2, k]
        a0 += a * x0
        a1 += a * x1
        a2 += a * x2
        b0 += b * x0
        b1 += b * x1
        b2 += b * x2
        c0 += c * x0
        c1 += c * x1
        c2 += c * x2
        d0 += d * x0
        d1 += d * x1
        d2 += d * x2
    _add(out, scales, m, n, a0, b0, c0, d0)
    _add(out, scales, m + 1, n, a1, b1, c1, d1)
    _add(out, scales, m + 2, n, a2, b2, c2, d2)


@kernel
def _two_rows(x: Floats, w: Floats | Int8s, scales: Floats, out: Floats, m: int, n: int) -> None:
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = np.float32(0)
    for k in range(x.shape[1]):
        a, b = np.float32(w[n, k]), np.float32(w[n + 1, k])
        c, d = np.float32(w[n + 2, k]), np.float32(w[n + 3, k])
        x0, x1 = x[m, k], x[m + 1, k]
        a0 += a * x0
        a1 += a * x1
        b0 += b * x0
        b1 += b * x1
        c0 += c * x0
        c1 += c * x1
        d0 += d * x0
        d1 += d * x1
    _add(out, scales, m, n, a0, b0, c0, d0)
    _add(out, scales, m + 1, n, a1, b1, c1, d1)


@kernel
def _add(
    out: Floats, scales: Floats, m: int, n: int, a: np.float32, b: np.float32, c: np.float32, d: np.float32
) -> None:
    out[m, n] += a * scales[n]
    out[m, n + 1] += b * scales[n + 1]
    out[m, n + 2] += c * scales[n + 2]
    out[m, n + 3] += d * scales[n + 3]


@kernel
def _one_sum(x: Floats, w: Floats | Int8s, scales: Floats, out: Floats, m: int, n: int) -> None:
    total = np.float32(0)
    for k in range(x.shape[1]):
        total += np.float32(w[n, k]) * x[m, k]
    out[m, n] += total * scales[n]


@kernel
def _block(x: Floats, w: Floats | Int8s, scales: Floats, out: Floats) -> None:
    """All rows, in threes as far as no single one is left over."""
    rows, outputs = x.shape[0], len(scales)
    fours = outputs - outputs % 4
    m = 0
    while m < rows:
        left = rows - m
        if left == 3 or left > 4:
            for n in range(0, fours, 4):
                _three_rows(x, w, scales, out, m, n)
            m += 3
        elif left > 1:
            for n in range(0, fours, 4):
                _two_rows(x, w, scales, out, m, n)
            m += 2
        else:
            for n in range(fours):
                _one_sum(x, w, scales, out, m, n)
            m += 1
    for n in range(fours, outputs):
        for m in range(rows):
            _one_sum(x, w, scales, out, m, n)


@parallel_kernel
def add_product(x: Floats, weight: Int8s, scales: Floats, out: Floats) -> None:
    """out += x @ (weight * scales).T; x: [rows, in], weight: [out, in], scales: [out], out: [rows, out]."""
    outputs, inputs = weight.shape
    for block in prange((outputs + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        last = min(first + _BLOCK, outputs)
        if len(x) <= _FEW:
            _block(x, weight[first:last], scales[first:last], out[:, first:last])
        else:
            floats = np.empty((last - first, inputs), np.float32)
            for n in range(last - first):
                for k in range(inputs):
                    floats[n, k] = weight[first + n, k]
            _block(x, floats, scales[first:last], out[:, first:last])
