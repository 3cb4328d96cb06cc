"""WAV: its header read here, its samples by libsndfile as samples without a header.

So no claim of the header reaches a parser, and of libsndfile's codecs for WAV only these eight can run.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import soundfile

from handlers.audio.containers import closed_early, undecodable, unsupported_codec
from handlers.audio.reader import BLOCK_FRAMES, Block, check_shape

# By format tag and bytes a sample (RIFF specification, Microsoft 1994, and mmreg.h).
_SUBTYPES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (1, 1): "PCM_U8",
        (1, 2): "PCM_16",
        (1, 3): "PCM_24",
        (1, 4): "PCM_32",
        (3, 4): "FLOAT",
        (3, 8): "DOUBLE",
        (6, 1): "ALAW",
        (7, 1): "ULAW",
    }
)
_EXTENSIBLE = 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")

# Recorders write a handful of chunks before the samples; millions of empty ones would keep a thread for seconds.
_MAX_CHUNKS = 1_000


class _Wav(NamedTuple):
    """start, stop: where the samples lie in the file."""

    file: BinaryIO
    sample_rate: int
    channels: int
    width: int
    subtype: str
    start: int
    stop: int

    def seconds(self, max_seconds: float) -> float:
        return (self.stop - self.start) // (self.width * self.channels) / self.sample_rate

    def blocks(self, max_seconds: float) -> Iterator[Block]:
        if self.stop - self.start < self.width * self.channels:
            return
        window = _Window(self.file, self.start, self.stop)
        with soundfile.SoundFile(
            window, "r", self.sample_rate, self.channels, self.subtype, endian="LITTLE", format="RAW"
        ) as sound:
            while len(samples := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                yield Block(self.sample_rate, samples)
        if window.failed:
            raise closed_early()


class _Window:
    """Bytes `start` to `stop` of a file, as a file of its own.

    libsndfile calls it from C, through which nothing can be raised: a file that fails ends there, and `failed` is set.
    """

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file = file
        self._start = start
        self._size = max(0, stop - start)
        self._at = 0
        self.failed = False

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = (0, self._at, self._size)[whence]
        self._at = min(max(0, origin + offset), self._size)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        try:
            self._file.seek(self._start + self._at)
            data = self._file.read(left if size < 0 else min(size, left))
        except (OSError, ValueError):  # ValueError: it was closed
            self.failed = True
            return b""
        self._at += len(data)
        return data


@contextmanager
def opened(file: BinaryIO, max_seconds: float) -> Iterator[_Wav]:
    """Raises InvalidRequest, or UnsupportedMedia for another codec."""
    size = file.seek(0, 2)
    tag, sample_rate, channels, width = None, 0, 0, 0
    long_size = None
    for name, start, length in _chunks(file, size):
        if name == b"fmt ":
            tag, sample_rate, channels, width = _format(_read(file, start, min(length, 40)))
        elif name == b"ds64":
            long_size = struct.unpack("<8xQ", _read(file, start, 16))[0]
        elif name == b"data" and tag is not None:
            if long_size is not None and length == 0xFFFFFFFF:
                length = long_size
            # A header written before its end was known says 0, or more than there is.
            stop = min(start + length, size) if length else size
            yield _Wav(file, sample_rate, channels, width, _SUBTYPES[tag, width], start, stop)
            return
    raise undecodable()


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, position of the content, and claimed length."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > size:
            return
        name, length = struct.unpack("<4sI", _read(file, at, 8))
        yield name, at + 8, length
        at += 8 + length + length % 2


def _format(chunk: bytes) -> tuple[int, int, int, int]:
    """Format tag, sample rate, channels, and bytes a sample."""
    if len(chunk) < 16:
        raise undecodable()
    tag, channels, sample_rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and chunk[26:40] == _GUID_TAIL:
        tag = int.from_bytes(chunk[24:26], "little")
    if not channels or frame_bytes % channels:
        raise undecodable()
    check_shape(sample_rate, channels)
    width = frame_bytes // channels
    if (tag, width) not in _SUBTYPES or not 0 < bits <= 8 * width:
        raise unsupported_codec()
    return tag, sample_rate, channels, width


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    data = file.read(length)
    if len(data) < length:
        raise undecodable()
    return data
