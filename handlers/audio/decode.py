"""From an uploaded file to samples. Nothing of the file is trusted: not its name, its header or its length.

No state is kept and no name is needed: a file may as well be a descriptor in a process of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial, reduce
from io import BytesIO
from itertools import groupby
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import soxr

from handlers.audio import ffmpeg, ogg, wav
from handlers.audio.containers import Container, closed_early, sniff, undecodable
from handlers.audio.reader import Block, Reader
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, TooLarge

SAMPLE_RATE = 16_000
"""Of what is read, in Hz."""

# 40 dB beyond full scale. All beyond it is clipped in the end, but the largest floats would overflow in the resampler.
_LOUDEST = 100.0

_READERS: Mapping[Container, Callable[[BinaryIO, float], AbstractContextManager[Reader]]] = MappingProxyType(
    {
        "wav": wav.opened,
        "flac": partial(ffmpeg.opened, demuxer="flac"),
        "ogg": partial(ffmpeg.opened, demuxer="ogg"),
        "mp3": partial(ffmpeg.opened, demuxer="mp3"),
        "aac": partial(ffmpeg.opened, demuxer="aac"),
        "mp4": partial(ffmpeg.opened, demuxer="mp4"),
        "matroska": partial(ffmpeg.opened, demuxer="matroska"),
    }
)


def read_blocks(file: BinaryIO, *, max_seconds: float) -> Iterator[Waveform]:
    """The file's first audio track at 16 kHz, the mean of its channels, in blocks that are read as they are asked for.

    A block has between 1 and some hundred thousand samples, whatever the length of the file. Damaged stretches are
    skipped, as players do. Raises UnsupportedMedia, TooLarge, or InvalidRequest when nothing can be decoded; all name
    `file`. Closing the iterator closes what was opened, but not `file`.
    """
    empty = True
    with _opened(file, max_seconds) as reader:
        blocks = _bounded(reader.blocks(max_seconds), max_seconds)
        for sample_rate, run in groupby(blocks, key=lambda block: block.sample_rate):
            for waveform in _resampled(map(_mixed, run), sample_rate):
                if len(waveform):
                    empty = False
                    yield waveform.clip(-1, 1)
    if empty:
        raise undecodable()


def decode(file: BinaryIO, *, max_seconds: float) -> Waveform:
    """`read_blocks` in one piece. Blocks; memory is bounded by `max_seconds`."""
    samples = BytesIO()
    for block in read_blocks(file, max_seconds=max_seconds):
        samples.write(block.data)
    return np.frombuffer(samples.getbuffer(), np.float32)


def measure_seconds(file: BinaryIO, *, max_seconds: float) -> float:
    """The length that the audio has when it is decoded, found without decoding it and without believing a header.

    Where damage has merged packets there may be more, which only `max_seconds` bounds. Takes less than 0.5 ms for a
    second of audio. Raises as `read_blocks` does.
    """
    if _container(file) == "ogg" and ogg.is_longer(file, max_seconds):
        raise _too_long(max_seconds)
    with _opened(file, max_seconds) as reader:
        seconds = reader.seconds(max_seconds)
    if seconds > max_seconds:
        raise _too_long(max_seconds)
    return seconds


@contextmanager
def _opened(file: BinaryIO, max_seconds: float) -> Iterator[Reader]:
    with _READERS[_container(file)](file, max_seconds) as reader:
        yield reader


def _container(file: BinaryIO) -> Container:
    if file.closed:
        raise closed_early()
    return sniff(file)


def _bounded(blocks: Iterator[Block], max_seconds: float) -> Iterator[Block]:
    # A sample more than the limit comes from rounding, and no longer audio.
    left = max_seconds + 1 / SAMPLE_RATE
    for block in blocks:
        left -= len(block.samples) / block.sample_rate
        if left < 0:
            raise _too_long(max_seconds)
        yield block


def _mixed(block: Block) -> Waveform:
    """Raises InvalidRequest for what is not a number."""
    channels = block.samples.T
    with np.errstate(invalid="ignore", over="ignore"):
        mixed: Waveform = reduce(np.add, channels) / np.float32(len(channels))
    if not np.isfinite(mixed).all():
        raise InvalidRequest("The audio has samples that are not numbers (NaN or infinity).", "file")
    return mixed.clip(-_LOUDEST, _LOUDEST)


def _resampled(waveforms: Iterator[Waveform], sample_rate: int) -> Iterator[Waveform]:
    """Band-limited: what lies above 8 kHz is removed, not folded down (soxr's HQ, 20 bits)."""
    if sample_rate == SAMPLE_RATE:
        yield from waveforms
        return
    resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
    for waveform in waveforms:
        yield resampler.resample_chunk(waveform)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _too_long(max_seconds: float) -> TooLarge:
    return TooLarge(
        f"The audio is longer than {max_seconds:g} seconds, the most that is taken. Send it in shorter files.", "file"
    )
