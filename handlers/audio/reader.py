"""What reads one kind of file, and what every reader refuses."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.errors import InvalidRequest

BLOCK_FRAMES = 32_768
"""The most that a block holds of each channel: 1 MB for 8 channels."""

# One second at 1 Hz would become 16,000 samples: rates outside these are a way to blow a small file up.
_SAMPLE_RATES = range(1_000, 768_001)
_MAX_CHANNELS = 8


class Block(NamedTuple):
    """samples: [frames, channels], as they were encoded: beyond full scale, or not a number, if that is in the file."""

    sample_rate: int
    samples: NDArray[np.float32]


class Reader(Protocol):
    """An open file, read once. max_seconds: of audio, beyond which a caller reads no further."""

    def seconds(self, max_seconds: float) -> float:
        """The length, found without decoding; it stops counting above `max_seconds`.

        `blocks` gives no more, save where damage has merged packets of a compressed file.
        """

    def blocks(self, max_seconds: float) -> Iterator[Block]:
        """Damaged stretches are skipped. Raises InvalidRequest."""


def check_shape(sample_rate: int, channels: int) -> None:
    """Raises InvalidRequest for what no recording has."""
    if sample_rate not in _SAMPLE_RATES:
        raise InvalidRequest(f"The audio's sample rate of {sample_rate} Hz is not taken; resample it.", "file")
    if channels > _MAX_CHANNELS:
        raise InvalidRequest(f"The audio has {channels} channels; mix it down to {_MAX_CHANNELS} or fewer.", "file")
