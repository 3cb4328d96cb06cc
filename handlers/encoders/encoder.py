"""What runs an encoder: token ids in, hidden states out."""

from collections.abc import Iterator, Sequence, Sized
from itertools import groupby
from typing import NamedTuple, Protocol, TypeVar

import torch

TokenIds = Sequence[int]
Input = TypeVar("Input", bound=Sized)


class Encoder(Protocol):
    """A model up to its last hidden state.

    hidden_size: numbers a token. positions: the longest input it has room for, in tokens; None where there is no end.
    """

    hidden_size: int
    positions: int | None

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, inputs: Sequence[TokenIds]) -> Iterator[torch.Tensor]:
        """Last hidden states of inputs sorted by length, longest first.

        One tensor [texts, tokens, hidden_size] for each run of inputs of equal length, in their order.
        """


class Run(NamedTuple):
    """Neighbours of equal length: so many texts of so many tokens each."""

    texts: int
    tokens: int


def runs(inputs: Sequence[Sized]) -> list[Run]:
    return [Run(sum(1 for _ in equal), tokens) for tokens, equal in groupby(map(len, inputs))]


def passes(inputs: Sequence[Input], max_tokens: int) -> Iterator[Sequence[Input]]:
    """Inputs, longest first, cut into passes of at most `max_tokens`, all counted as long as the pass's longest.

    A longer input passes alone.
    """
    start = 0
    while start < len(inputs):
        stop = start + max(1, max_tokens // max(1, len(inputs[start])))
        yield inputs[start:stop]
        start = stop
