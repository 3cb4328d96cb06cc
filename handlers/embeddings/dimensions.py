"""How many numbers a vector has, and which models' vectors may be cut: Matryoshka representations.

Such a model is trained so that the first numbers of a vector are a vector themselves (Kusupati et al., NeurIPS 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.errors import InvalidRequest
from handlers.spec import ModelSpec

Vector = NDArray[np.float32]

_SMALLEST_NORM = 1e-12  # of torch.nn.functional.normalize


@dataclass(frozen=True, slots=True)
class Dimensions:
    """native: of a whole vector. shorter: what it may be cut to, the largest first; empty for most models."""

    native: int
    shorter: Sequence[int] = ()

    def check(self, model: str, wanted: int | None) -> int:
        """How many numbers are wanted. Raises InvalidRequest for what the model was not trained for."""
        if wanted is None or wanted == self.native:
            return self.native
        if wanted in self.shorter:
            return wanted
        if not self.shorter:
            reason = f"was not trained for shortened vectors: leave `dimensions` out, or ask for its {self.native}"
        else:
            reason = f"was trained for vectors of {self._offered()} numbers, not {wanted}: ask for one of these"
        raise InvalidRequest(f"`{model}` {reason}.", "dimensions", "invalid_value")

    @property
    def described(self) -> list[int] | str:
        """`shorter` for people to read."""
        return self._offered() if isinstance(self.shorter, range) else list(self.shorter)

    def _offered(self) -> str:
        if isinstance(self.shorter, range):
            return f"1 to {self.native}"
        return f"{', '.join(map(str, (self.native, *self.shorter[:-1])))} or {self.shorter[-1]}"


def read_dimensions(spec: ModelSpec, config: Mapping[str, Any], native: int) -> Dimensions:
    """What the description says, else what config.json says under the names that vLLM reads there.

    Raises ValueError for numbers that no cut can have.
    """
    told = spec.matryoshka_dimensions
    if told is None:
        told = config.get("matryoshka_dimensions")
    if told is None:
        return Dimensions(native, range(native - 1, 0, -1) if config.get("is_matryoshka") is True else ())
    if not isinstance(told, list | tuple):
        raise ValueError(f"matryoshka_dimensions {told!r} is not a list of numbers")
    if wrong := [number for number in told if type(number) is not int or not 0 < number <= native]:
        raise ValueError(f"matryoshka_dimensions {wrong[0]} is not from 1 to its {native} dimensions")
    return Dimensions(native, tuple(sorted(set(told) - {native}, reverse=True)))


def shaped(vectors: NDArray[np.float32], dimensions: int, *, normalize: bool) -> Vector:
    """[vectors, native] cut to [vectors, dimensions], and then brought to length 1 if asked to."""
    cut = vectors[:, :dimensions]
    if not normalize:
        return cut
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    normalized: Vector = cut / np.maximum(norms, np.float32(_SMALLEST_NORM))
    return normalized
