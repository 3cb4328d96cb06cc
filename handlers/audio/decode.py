"""From an uploaded file to samples. Nothing of the file is trusted: not its name, its header or its length."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain, groupby
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np

from handlers.audio.containers import CODECS, sniff, unsupported_codec
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, TooLarge

SAMPLE_RATE = 16_000

# One second at 1 Hz would become 16,000 samples: rates outside these are a way to blow a small file up.
_SAMPLE_RATES = range(1_000, 768_001)
_MAX_CHANNELS = 8

# No codec puts less into a packet than Opus with 2.5 ms; millions of empty ones would keep a thread for minutes.
_PACKETS_PER_SECOND = 400


def decode(file: BinaryIO, *, max_seconds: float) -> Waveform:
    """The file's first audio track at 16 kHz, its channels mixed. Blocks; memory is bounded by `max_seconds`.

    Damaged stretches are skipped, as players do. Raises UnsupportedMedia, TooLarge, or InvalidRequest when nothing can
    be decoded; all name `file`.
    """
    samples = BytesIO()
    with _opened(file) as track:
        for block in _resampled(_frames(track, max_seconds)):
            samples.write(block.data)
            if samples.tell() > max_seconds * SAMPLE_RATE * block.itemsize:
                raise _too_long(max_seconds)
    if not samples.tell():
        raise _undecodable()
    return np.frombuffer(samples.getbuffer(), np.float32)


def measure_seconds(file: BinaryIO, *, max_seconds: float) -> float:
    """The audio's length, added up from its packets without decoding them, because headers may be absent or lie.

    Takes about 0.2 ms for a second of audio. Raises as `decode` does.
    """
    ticks = 0
    with _opened(file) as track:
        tick = track.stream.time_base or 0
        for packet in track.packets(max_seconds):
            ticks += packet.duration or 0
            if ticks * tick > max_seconds:
                raise _too_long(max_seconds)
        return float(ticks * tick)


class _Track(NamedTuple):
    container: av.container.InputContainer
    stream: av.AudioStream

    def packets(self, max_seconds: float) -> Iterator["av.Packet[Any]"]:
        """Ends where the container is damaged beyond reading on. Raises InvalidRequest for a flood of empty packets."""
        most = _PACKETS_PER_SECOND * (max_seconds + 1)
        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                if count > most:
                    raise InvalidRequest("The file is in more pieces than audio ever is; encode it again.", "file")
                yield packet
        except av.FFmpegError:
            return


@contextmanager
def _opened(file: BinaryIO) -> Iterator[_Track]:
    try:
        # FFmpeg opens every track's codec to look at it; the list keeps it from the ones that are not wanted.
        options = {"codec_whitelist": ",".join(CODECS)}
        with av.open(file, "r", format=sniff(file), options=options, metadata_errors="ignore") as container:
            yield _Track(container, _audio_stream(container))
    except av.FFmpegError:
        raise _undecodable() from None
    except ValueError:
        if not file.closed:
            raise
        raise InvalidRequest("The file was closed before it was read.", "file") from None


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream:
    if not container.streams.audio:
        raise InvalidRequest("The file has no audio track.", "file")
    stream = container.streams.audio[0]
    if stream.codec_context is None or stream.codec_context.name not in CODECS:
        raise unsupported_codec()
    return stream


def _frames(track: _Track, max_seconds: float) -> Iterator[av.AudioFrame]:
    for packet in track.packets(max_seconds):
        try:
            yield from track.stream.codec_context.decode(packet)
        except av.FFmpegError:
            continue


class _Shape(NamedTuple):
    """What may change from one frame to the next, in chained streams; a resampler takes only one of them."""

    rate: int
    layout: str
    channels: int
    sample_format: str

    @classmethod
    def of(cls, frame: av.AudioFrame) -> "_Shape":
        return cls(frame.sample_rate, frame.layout.name, frame.layout.nb_channels, frame.format.name)


def _resampled(frames: Iterator[av.AudioFrame]) -> Iterator[Waveform]:
    for shape, run in groupby(frames, key=_Shape.of):
        _refuse_odd_shape(shape)
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        for frame in chain(run, [None]):
            # Nothing but its packed output is looked at from here: PyAV reads past the planes of 8 channels and more.
            yield from (_checked(resampled.to_ndarray()[0]) for resampled in resampler.resample(frame) if resampled)


def _refuse_odd_shape(shape: _Shape) -> None:
    if shape.rate not in _SAMPLE_RATES:
        raise InvalidRequest(f"The audio's sample rate of {shape.rate} Hz is not taken; resample it.", "file")
    if shape.channels > _MAX_CHANNELS:
        raise InvalidRequest(
            f"The audio has {shape.channels} channels; mix it down to {_MAX_CHANNELS} or fewer.", "file"
        )


def _checked(samples: Waveform) -> Waveform:
    if not np.isfinite(samples).all():
        raise InvalidRequest("The audio has samples that are not numbers (NaN or infinity).", "file")
    return samples.clip(-1, 1)


def _too_long(max_seconds: float) -> TooLarge:
    return TooLarge(
        f"The audio is longer than {max_seconds:g} seconds, the most that is taken. Send it in shorter files.", "file"
    )


def _undecodable() -> InvalidRequest:
    return InvalidRequest("The file cannot be decoded: it is empty or damaged, or its content is not audio.", "file")
