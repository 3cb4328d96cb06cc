"""What a transformer does between its products, for few rows."""

import numpy as np

from handlers.kernels.compiled import kernel
from handlers.kernels.types import Floats, Int32s

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C5, _C4, _C3, _C2, _C1, _C0 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
    np.float32(4.1665795894e-2),
    np.float32(1.6666665459e-1),
    np.float32(5.0000001201e-1),
)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)


@kernel
def exponentiate(x: Floats, powers: Int32s) -> None:
    """x = exp(x) in place, within 2e-7 of it; below e**-87 it is that. x: [n]; powers: [n], as working memory.

    The polynomial is that of Cephes' expf (Moshier, 1992). The loops hold nothing that keeps a processor from taking
    many numbers at once, which a call of the C library's function does.
    """
    exponents = powers.view(np.float32)
    for i in range(len(x)):
        value = x[i]
        value = _LOWEST if value < _LOWEST else value
        value = _HIGHEST if value > _HIGHEST else value
        power = np.floor(value * _LOG2_E + np.float32(0.5))
        r = value - power * _LN2_HIGH - power * _LN2_LOW
        polynomial = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
        x[i] = polynomial * r * r + r + np.float32(1)
        powers[i] = (np.int32(power) + np.int32(127)) << np.int32(23)
    for i in range(len(x)):
        x[i] *= exponents[i]


@kernel
def normalize(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """Root mean square norm (Zhang, Sennrich, 2019) of each row. x, out: [rows, size]; weight: [size]."""
    rows, size = x.shape
    for m in range(rows):
        squares = np.float32(0)
        for i in range(size):
            squares += x[m, i] * x[m, i]
        scale = np.float32(1 / np.sqrt(squares / size + eps))
        for i in range(size):
            out[m, i] = x[m, i] * scale * weight[i]


@kernel
def gate(x: Floats, out: Floats, first: int, last: int, powers: Int32s) -> None:
    """out = silu(x[:, :size]) * x[:, size:] for the columns from `first` to `last`.

    x: [rows, 2 * size]; out: [rows, size]; powers: [last - first].
    """
    rows, size = out.shape
    for m in range(rows):
        column = out[m, first:last]
        for i in range(last - first):
            column[i] = -x[m, first + i]
        exponentiate(column, powers)
        for i in range(last - first):
            column[i] = x[m, first + i] * x[m, size + first + i] / (np.float32(1) + column[i])


@kernel
def rotate(heads: Floats, cos: Floats, sin: Floats) -> None:
    """Rotary positions (Su et al., RoFormer, 2021), in place. heads: [heads, size]; cos, sin: [size]."""
    half = heads.shape[1] // 2
    for h in range(heads.shape[0]):
        for i in range(half):
            first, second = heads[h, i], heads[h, half + i]
            heads[h, i] = first * cos[i] - second * sin[i]
            heads[h, half + i] = second * cos[half + i] + first * sin[half + i]
