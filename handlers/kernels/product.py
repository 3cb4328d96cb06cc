"""Rows times a matrix of weights that lie in panels: w[n, k] = panels[n // 16, k, n % 16] * scales[n].

Weights of 8 bits are made float in registers, so they cost a quarter of the memory and of the reading of float32 ones,
and nothing else.
"""

import numpy as np
from numba import prange

from handlers.kernels.compiled import kernel, parallel_kernel
from handlers.kernels.tile import COLUMNS, ROWS, pointer, tile
from handlers.kernels.types import Floats, Panels

_one_row, _two_rows, _three_rows, _four_rows, _five_rows, _six_rows = (tile(rows) for rows in range(1, ROWS + 1))


def panels(weight: Panels) -> Panels:
    """[out, in] as [panels, in, COLUMNS]; outputs that fill the last panel up are zero."""
    outputs, inputs = weight.shape
    filled = np.zeros((-(-outputs // COLUMNS) * COLUMNS, inputs), weight.dtype)
    filled[:outputs] = weight
    return np.ascontiguousarray(filled.reshape(-1, COLUMNS, inputs).transpose(0, 2, 1))


@parallel_kernel
def add_product(x: Floats, panels: Panels, scales: Floats, out: Floats) -> None:
    """out += x @ (weight * scales).T; x: [rows, in], scales: [out], out: [rows, out], panels: see `panels`."""
    outputs = len(scales)
    for i in prange(len(panels)):
        first = i * COLUMNS
        last = first + COLUMNS
        if last <= outputs:
            _add_panel(x, panels[i], scales[first:last], out[:, first:last])
        else:
            whole, one = np.zeros((len(x), COLUMNS), np.float32), np.ones(COLUMNS, np.float32)
            _add_panel(x, panels[i], one, whole)
            out[:, first:] += whole[:, : outputs - first] * scales[first:]


@kernel
def _add_panel(x: Floats, panel: Panels, scales: Floats, out: Floats) -> None:
    """out += x @ panel * scales; x: [rows, in], panel: [in, COLUMNS], scales: [COLUMNS], out: [rows, COLUMNS].

    In tiles of six rows, and the rest in equal ones.
    """
    rows, inputs = x.shape
    x_stride, out_stride = x.strides[0] // x.itemsize, out.strides[0] // out.itemsize
    weights, factors = pointer(panel), pointer(scales)
    m = 0
    while m < rows:
        left = rows - m
        start, end = pointer(x[m:]), pointer(out[m:])
        if left == 6 or left > 8:
            _six_rows(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 6
        elif left == 5:
            _five_rows(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 5
        elif left >= 4:
            _four_rows(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 4
        elif left == 3:
            _three_rows(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 3
        elif left == 2:
            _two_rows(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 2
        else:
            _one_row(start, x_stride, weights, inputs, factors, end, out_stride)
            m += 1
