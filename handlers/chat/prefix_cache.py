"""Keys and values of prompts that may come again: the system prompt, the conversation so far.

Blocks of tokens are chained by hash, so a block stands for everything before it, too (vLLM's automatic prefix caching).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile

import torch

BLOCK = 16


class PrefixCache:
    """The least recently used blocks go first. max_bytes 0: nothing is kept.

    States are [2, layers, heads, tokens, head_dim], as in kv_cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._blocks: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, token_ids: Sequence[int], salt: str) -> list[torch.Tensor]:
        """The blocks that `token_ids` begins with. The last token is always left out: its logits are wanted."""
        if not self._blocks:
            return []
        found = list(takewhile(self._blocks.__contains__, _keys(token_ids[:-1], salt)))
        self._touch(found)
        return [self._blocks[key] for key in found]

    def insert(self, token_ids: Sequence[int], salt: str, states: torch.Tensor) -> None:
        """Keep the whole blocks of a computed prompt."""
        if not self.max_bytes:
            return
        keys = list(_keys(token_ids, salt))
        for i, key in enumerate(keys):
            if key not in self._blocks:
                block = states[:, :, :, i * BLOCK : (i + 1) * BLOCK].clone()
                self._blocks[key] = block
                self.bytes += block.nbytes
        self._touch(keys)
        self._evict()

    def clear(self) -> None:
        self._blocks.clear()
        self.bytes = 0

    def _touch(self, keys: Sequence[bytes]) -> None:
        """The first block becomes the latest: a block is of no use without those before it."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _evict(self) -> None:
        while self.bytes > self.max_bytes:
            _, block = self._blocks.popitem(last=False)
            self.bytes -= block.nbytes


def _keys(token_ids: Sequence[int], salt: str) -> Iterator[bytes]:
    """A collision-proof name for each whole block and all that precedes it."""
    key = blake2b(salt.encode(), digest_size=16).digest()
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        block = b",".join(b"%d" % token for token in token_ids[start : start + BLOCK])
        key = blake2b(key + block, digest_size=16).digest()
        yield key
