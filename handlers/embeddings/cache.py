"""Vectors that may be asked for again."""

from collections import OrderedDict
from hashlib import blake2b

import numpy as np

from handlers.embeddings.dimensions import Vector
from handlers.embeddings.types import TokenIds

MAX_ENTRIES = 262_144
_ENTRY_BYTES = 320
"""What an entry takes besides its numbers: the key, the array around the numbers, a place in the dict."""


class VectorCache:
    """The least recently used go first. Of one model and one source of it, so keys need not tell these."""

    def __init__(self, max_bytes: int, max_entries: int = MAX_ENTRIES) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.bytes = 0
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> Vector | None:
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: Vector) -> None:
        """A copy is kept: the vector may be a row of a whole batch, which would stay in memory with it."""
        if key in self._vectors:
            return
        kept = vector.copy()
        kept.setflags(write=False)
        self._vectors[key] = kept
        self.bytes += _size(kept)
        while self.bytes > self.max_bytes or len(self._vectors) > self.max_entries:
            _, oldest = self._vectors.popitem(last=False)
            self.bytes -= _size(oldest)


def salted(salt: str) -> bytes:
    """A salt of any length as `cache_key` takes it."""
    return blake2b(salt.encode(), digest_size=32).digest()


def cache_key(token_ids: TokenIds, salt: bytes) -> bytes:
    """A collision-proof name for the tokens that the model reads, prompt, cut and special ones included."""
    return blake2b(np.asarray(token_ids, np.int32).tobytes(), digest_size=16, key=salt).digest()


def _size(vector: Vector) -> int:
    return vector.nbytes + _ENTRY_BYTES
