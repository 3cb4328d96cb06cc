"""Keys and values of all running rows, in memory that is written in place.

transformers' own DynamicCache concatenates, which copies the whole cache at every step. Here every layer owns a slab;
rows lie in it right-aligned, so that one column is written for all rows at each step, whatever their lengths.

    columns   0 . . . . . . length
    row 0     [ pad ][ tokens     ]
    row 1     [ tokens            ]
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, DynamicLayer

_COLUMNS = 128


class SlabLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values: slabs of [rows, heads, columns, head size], of which a corner is in use."""

    slabs: tuple[torch.Tensor, torch.Tensor]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = 0
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [rows, heads, new columns, head size]; returns all columns."""
        rows, _, new, _ = key_states.shape
        self._reserve(rows, self.length + new, key_states)
        for slab, states in zip(self.slabs, (key_states, value_states), strict=True):
            slab[:rows, :, self.length : self.length + new] = states
        self.rows = rows
        self.length += new
        return self.in_use()

    def in_use(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and the values, [rows, heads, length, head size]."""
        keys, values = self.slabs
        return keys[: self.rows, :, : self.length], values[: self.rows, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def insert(self, row: "SlabLayer") -> None:
        """Add the one row of another layer, right-aligned with the rows here."""
        states = row.in_use()
        length = max(self.length, row.length)
        self._reserve(self.rows + 1, length, states[0])
        if row.length > self.length:
            self._move(self.length - row.length)
        for slab, new in zip(self.slabs, states, strict=True):
            slab[self.rows, :, : length - row.length] = 0  # masked, but 0 times a stale NaN would still be NaN
            slab[self.rows, :, length - row.length : length] = new[0]
        self.rows += 1
        self.length = length

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these, given in ascending order; they move up."""
        for slab in self.slabs:
            for to, row in enumerate(rows):
                if to != row:
                    slab[to, :, : self.length] = slab[row, :, : self.length]
        self.rows = len(rows)

    def trim(self, columns: int) -> None:
        """Cut columns on the left, which are padding in every row."""
        self._move(columns)
        self.length -= columns

    def _reserve(self, rows: int, columns: int, like: torch.Tensor) -> None:
        """Make the slabs hold so much; they grow in powers of two, so copies are amortised."""
        had_rows, had_columns = (self.slabs[0].shape[0], self.slabs[0].shape[2]) if self.is_initialized else (1, 0)
        if rows <= had_rows and columns <= had_columns:
            return
        shape = (_grown(rows, had_rows), like.shape[1], _grown(columns, had_columns or _COLUMNS), like.shape[3])
        slabs = like.new_empty(shape), like.new_empty(shape)
        if self.is_initialized:
            for new, old in zip(slabs, self.in_use(), strict=True):
                new[: self.rows, :, : self.length] = old
        self.slabs = slabs
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def _move(self, left: int) -> None:
        """Shift the rows by so many columns, to the right if negative."""
        source, target = (left, 0) if left > 0 else (0, -left)
        width = self.length - source
        for slab in self.slabs:
            slab[: self.rows, :, target : target + width] = slab[: self.rows, :, source : source + width].clone()
            slab[: self.rows, :, :target] = 0


class BatchCache(Cache):
    """The cache that the model's forward sees: a SlabLayer a layer."""

    def __init__(self, layers: int) -> None:
        self.slab_layers = [SlabLayer() for _ in range(layers)]
        super().__init__(layers=list(self.slab_layers))

    def insert(self, row: "BatchCache") -> None:
        """Add one prefilled row, the cache of a batch of one."""
        for layer, new in zip(self.slab_layers, row.slab_layers, strict=True):
            layer.insert(new)

    def keep(self, rows: Sequence[int]) -> None:
        for layer in self.slab_layers:
            layer.keep(rows)

    def trim(self, columns: int) -> None:
        for layer in self.slab_layers:
            layer.trim(columns)


def _grown(need: int, size: int) -> int:
    while size < need:
        size *= 2
    return size
