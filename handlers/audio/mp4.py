"""What FFmpeg would believe of an MP4: a few bytes of a table can ask for gigabytes of index.

One flipped byte in an M4A of 9 kB cost 870 MB and 4 s before a sample was decoded.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from handlers.audio.containers import in_too_many_pieces, undecodable, unsupported_codec

# Boxes that say of how many samples the track is (ISO/IEC 14496-12), and the one that hides others, compressed.
_TABLES = re.compile(rb"stsz|stz2|stts|ctts|trun|cmov")

# A fragmented file has a few for every fragment; millions of empty ones would keep a thread for seconds.
_MAX_BOXES = 50_000


def check_tables(file: BinaryIO, max_samples: float) -> None:
    """Raises InvalidRequest for a file that claims to be of more samples (packets) than that, whatever its size."""
    claimed: Counter[bytes] = Counter()
    for box in _boxes(file):
        # Wherever it lies: FFmpeg takes a table for one in places where it does not belong, too.
        for match in _TABLES.finditer(box):
            name = match[0]
            if name == b"cmov":
                raise unsupported_codec()
            claimed[name] += _count(name, box, match.end())
            if claimed[name] > max_samples:
                raise in_too_many_pieces()


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The content of every box at the top but `mdat`, which holds the sound."""
    at, end = 0, file.seek(0, 2)
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        file.seek(at)
        head = file.read(16)
        size, name = struct.unpack_from(">I4s", head)
        if size == 1 and len(head) == 16:
            size = struct.unpack_from(">Q", head, 8)[0]
        if name != b"mdat":
            file.seek(at + 8)
            # Never as much as is claimed: a file makes room for what it is asked for.
            yield file.read(end - at - 8 if size == 0 else max(0, min(size, end - at) - 8))
        if size < 8:
            return
        at += size
    raise undecodable()


def _count(name: bytes, box: bytes, at: int) -> int:
    """Samples that the table at `at`, where its version and flags are, speaks of."""
    numbers = np.frombuffer(box, ">u4", (len(box) - at) // 4, at)
    if name in (b"stsz", b"stz2"):
        return int(numbers[2]) if len(numbers) > 2 else 0
    if len(numbers) < 2:
        return 0
    if name == b"trun":
        return int(numbers[1])
    runs = numbers[2 : 2 + 2 * int(numbers[1]) : 2]
    return int(runs.sum(dtype=np.uint64))
