"""A linear layer whose weight is laid out once, for the processor that will multiply it."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from handlers.devices import packs_weights
from handlers.kernels.compiled import kernels_pay
from handlers.kernels.product import add_product, panels
from handlers.kernels.tile import COLUMNS
from handlers.kernels.types import Floats, Panels


@dataclass(frozen=True, slots=True)
class _Activation:
    """plain: the function. attribute, algorithm: oneDNN's names for it, where it is part of the product."""

    plain: Callable[[Tensor], Tensor]
    attribute: str
    algorithm: str = ""


_TANH_GELU = _Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh")

ACTIVATIONS = {
    "none": _Activation(lambda x: x, "none"),
    "gelu": _Activation(F.gelu, "gelu", "none"),
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "relu": _Activation(F.relu, "relu"),
}
"""By the names that the `hidden_act` of a config.json has for them."""

# oneDNN chooses the layout for so many rows; other counts run on it as well.
_ROWS = 256

ALL_ROWS = sys.maxsize

_SMALLEST_SCALE = 1e-8
_ROWS_TO_TRY = (64, 32, 16, 8, 4, 1)


class Linear:
    """activation(x @ weight.T + bias), for inference.

    weight [out, in] and bias [out] are on the device and in the dtype they are to run in. On an x86 processor the
    weight is copied into oneDNN's layout: up to twice as fast as the plain one for 8 to 256 rows, and the activation
    costs no pass of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> None:
        self._bias = bias
        self._activation = ACTIVATIONS[activation]
        self._packed = packs_weights(weight.device, weight.dtype)
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""
        if not self._packed:
            return self._activation.plain(F.linear(x, self._weight, self._bias))
        fused = self._activation
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, fused.attribute, [], fused.algorithm
        )
        return product


class Int8Linear:
    """x @ weight.T + bias with the weight rounded to 8 bits, one scale for each output; on the processor, in float32.

    few_rows: up to how many rows are multiplied so; more are by oneDNN, with the very same rounded weight in the dtype
    `many`, or so as well if that is None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        few_rows: int = ALL_ROWS,
        many: torch.dtype | None = None,
    ) -> None:
        """weight: [out, in] and bias: [out], float32."""
        scales = weight.abs().amax(dim=1).clamp(min=_SMALLEST_SCALE) / 127
        rounded = (weight / scales[:, None]).round_().clamp_(-127, 127)
        self.panels: Panels = panels(rounded.to(torch.int8).numpy())
        self.scales: Floats = scales.numpy()
        self.bias: Floats = np.empty(0, np.float32) if bias is None else bias.numpy()
        self._few_rows = few_rows
        self._dtype = many
        self._many = None if many is None else Linear(rounded.mul_(scales[:, None]).to(many), _cast(bias, many))

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""
        if self._many is None or len(x) <= self._few_rows:
            return self._multiply_few(x)
        return self._many(x.to(self._dtype)).to(x.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight, [indices, in]: embeddings and output layer are often one table."""
        chosen = indices.numpy()
        weights = self.panels[chosen // COLUMNS, :, chosen % COLUMNS]
        return torch.from_numpy(weights * self.scales[chosen][:, None])

    def _multiply_few(self, x: Tensor) -> Tensor:
        product = np.zeros((len(x), len(self.scales)), np.float32)
        if len(self.bias):
            product += self.bias
        add_product(x.contiguous().numpy(), self.panels, self.scales, product)
        return torch.from_numpy(product)


def tiles_suit_processor() -> bool:
    """Whether the tiles of handlers.kernels, shaped for AVX2, multiply many rows as fast as oneDNN does in float32."""
    return kernels_pay() and torch.backends.cpu.get_cpu_capability() == "AVX2"


def rows_faster_in_int8(dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter) -> int:
    """Up to how many rows this processor multiplies faster with int8 weights than with `dtype`; 0 for none.

    Where it is not known it is measured, as it depends on the processor's instructions and on how fast it reads memory.
    """
    if not kernels_pay():
        return 0
    if dtype == torch.float32 and tiles_suit_processor():
        return ALL_ROWS
    weight = torch.ones(4096, 4096)
    int8, full = Int8Linear(weight), Linear(weight.to(dtype))
    for rows in _ROWS_TO_TRY:
        x = torch.ones(rows, 4096)
        if _seconds(int8, x, clock) < _seconds(full, x.to(dtype), clock):
            return rows
    return 0


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _seconds(linear: Callable[[Tensor], Tensor], x: Tensor, clock: Callable[[], float]) -> float:
    """The shortest of some runs: whatever else the machine does only makes one longer."""
    seconds = []
    for _ in range(4):
        started = clock()
        linear(x)
        seconds.append(clock() - started)
    return min(seconds)
