"""Keys and values: one private run of memory while a prompt is computed, shared slabs while an answer is generated.

Rows that generate are sorted into buckets by length. A bucket is one slab per kind for all layers, whose rows are its
first ones, without gaps, so that attention over a bucket is one call a layer on a view of it:

    bucket 256     columns 0 . . . . . . . . 255
    row 0          [ tokens              |      ]
    row 1          [ tokens       |             ]
                                         ^ attention reads up to the longest row

A row moves on to the next bucket when it outgrows its own, so at most half of a row's memory lies idle.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_SMALLEST = 128
_ROW_STEP = 4


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token's keys and values are: layers x heads x head_dim, twice."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, rows: int, columns: int) -> torch.Tensor:
        """[2, layers, rows, heads, columns, head_dim]; 0 is keys, 1 is values."""
        size = (2, self.layers, rows, self.heads, columns, self.head_dim)
        return torch.empty(size, dtype=self.dtype, device=self.device)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


class Bucket:
    """The rows of up to `columns` tokens. `slab` is as KVShape.empty; rows 0 … len - 1 of it are in use."""

    def __init__(self, shape: KVShape, columns: int) -> None:
        self.columns = columns
        self.owners: list[int] = []
        self.slab = shape.empty(0, columns)
        self._shape = shape

    def __len__(self) -> int:
        return len(self.owners)

    def add(self, owner: int, states: torch.Tensor) -> None:
        """Take in a row of [2, layers, heads, tokens, head_dim]."""
        slot, tokens = len(self.owners), states.shape[3]
        if slot == self.slab.shape[2]:
            self._resize(slot + _ROW_STEP)
        self.slab[:, :, slot, :, :tokens] = states
        # Attention reads as far as the longest row. A mask hides numbers, but not NaN, which old memory may hold.
        self.slab[:, :, slot, :, tokens:] = 0
        self.owners.append(owner)

    def remove(self, owner: int) -> None:
        """The last row takes the place of the one that leaves."""
        slot, last = self.owners.index(owner), len(self.owners) - 1
        if slot != last:
            self.slab[:, :, slot] = self.slab[:, :, last]
            self.owners[slot] = self.owners[last]
        self.owners.pop()
        if last <= self.slab.shape[2] - 2 * _ROW_STEP or not last:
            self._resize(-(-last // _ROW_STEP) * _ROW_STEP)

    def states(self, owner: int, tokens: int) -> torch.Tensor:
        """A view of one row: [2, layers, heads, tokens, head_dim]."""
        return self.slab[:, :, self.owners.index(owner), :, :tokens]

    def _resize(self, rows: int) -> None:
        slab = self._shape.empty(rows, self.columns)
        kept = len(self.owners)
        slab[:, :, :kept] = self.slab[:, :, :kept]
        self.slab = slab


class KVCache:
    """The buckets, and which of them a row is in. Rows are known by their ids."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self._buckets: dict[int, Bucket] = {}
        self._bucket_of: dict[int, Bucket] = {}

    def __iter__(self) -> Iterator[Bucket]:
        """The buckets that have rows."""
        return (bucket for _, bucket in sorted(self._buckets.items()) if len(bucket))

    @property
    def bytes(self) -> int:
        return sum(bucket.slab.nbytes for bucket in self._buckets.values())

    def add(self, row: int, states: torch.Tensor) -> None:
        """Take in a computed prompt: [2, layers, heads, tokens, head_dim]."""
        bucket = self._bucket_for(states.shape[3] + 1)
        bucket.add(row, states)
        self._bucket_of[row] = bucket

    def reserve(self, row: int, tokens: int) -> None:
        """Make room for one more token in a row of so many."""
        bucket = self._bucket_of[row]
        if tokens < bucket.columns:
            return
        states = bucket.states(row, tokens)
        self._bucket_for(tokens + 1).add(row, states)
        bucket.remove(row)
        self._bucket_of[row] = self._bucket_for(tokens + 1)

    def states(self, row: int, tokens: int) -> torch.Tensor:
        """A view of a row: [2, layers, heads, tokens, head_dim]."""
        return self._bucket_of[row].states(row, tokens)

    def remove(self, row: int) -> None:
        """Give back a row's memory; of a row that is not there, nothing."""
        bucket = self._bucket_of.pop(row, None)
        if bucket is not None:
            bucket.remove(row)

    def _bucket_for(self, tokens: int) -> Bucket:
        columns = max(_SMALLEST, 1 << (tokens - 1).bit_length())
        if columns not in self._buckets:
            self._buckets[columns] = Bucket(self.shape, columns)
        return self._buckets[columns]
