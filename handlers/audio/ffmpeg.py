"""What FFmpeg reads, through PyAV: everything that is compressed.

FLAC, Ogg and MP3 could be read through libsndfile, which is faster where frames are small (16 kHz mono: MP3 3,800 times
real time against 1,150, Vorbis 2,800 against 600, FLAC 4,000 against 2,500; Opus no faster) and loses more. Of 20 s of
speech, in blocks as long audio has to be read:

                                       libsndfile 1.2.2    FFmpeg 8
    FLAC with one flipped bit          4.1 s               20.0 s
    MP3 with 2,000 zeroed bytes        8.2 s               19.3 s
    two FLAC, MP3 or Ogg files joined  20 s                40 s
    MP3, garbage between tag and sound refused             20.1 s
    FLAC in Ogg                        refused             20.0 s
    likeness of MP3 to the original    0.96                0.99
    likeness of Opus to the original   0.66                0.99
    Vorbis with one flipped bit        20.0 s              19.2 s

soundfile seeks after every block, which libsndfile does not do exactly in MP3 and Opus. Its mpg123 writes a line to
stderr for each damaged frame.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from typing import Any, BinaryIO, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray

from handlers.audio.containers import closed_early, in_too_many_pieces, undecodable, unsupported_codec
from handlers.audio.mp4 import check_tables
from handlers.audio.reader import BLOCK_FRAMES, Block, check_shape
from handlers.errors import InvalidRequest

_CODECS = (
    *("pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be", "pcm_f32le"),
    *("mp3float", "mp2", "flac", "alac", "vorbis", "opus", "aac"),
)
"""FFmpeg's decoders that may run; a container could name any of its hundreds."""

# No codec puts less into a packet than Opus with 2.5 ms; millions of empty ones would keep a thread for minutes.
_PACKETS_PER_SECOND = 400


class _Track(NamedTuple):
    container: av.container.InputContainer
    stream: av.AudioStream

    def seconds(self, max_seconds: float) -> float:
        """Added up from the packets, because headers may be absent or lie. One without a length is decoded for it."""
        total = 0.0
        tick = float(self.stream.time_base or 0)
        for packet in self._packets(max_seconds):
            if packet.duration:
                total += packet.duration * tick
            elif packet.size:
                total += sum(frame.samples / frame.sample_rate for frame in self._decoded(packet) if frame.sample_rate)
            if total > max_seconds:
                break
        return total

    def blocks(self, max_seconds: float) -> Iterator[Block]:
        for shape, run in groupby(self._frames(max_seconds), key=_Shape.of):
            check_shape(shape.rate, shape.channels)
            packed = av.AudioResampler("flt", frame_size=BLOCK_FRAMES)
            for frame in chain(run, [None]):
                # Nothing but packed samples is looked at: PyAV reads past the planes of 8 channels and more.
                for joined in packed.resample(frame):
                    samples = cast(NDArray[np.float32], joined.to_ndarray())
                    yield Block(shape.rate, samples.reshape(-1, shape.channels))

    def _packets(self, max_seconds: float) -> Iterator["av.Packet[Any]"]:
        """Ends where the container is damaged beyond reading on. Raises InvalidRequest for a flood of empty packets."""
        most = _PACKETS_PER_SECOND * (max_seconds + 1)
        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                if count > most:
                    raise in_too_many_pieces()
                yield packet
        except av.FFmpegError:
            return

    def _frames(self, max_seconds: float) -> Iterator[av.AudioFrame]:
        for packet in self._packets(max_seconds):
            yield from self._decoded(packet)

    def _decoded(self, packet: "av.Packet[Any]") -> Sequence[av.AudioFrame]:
        try:
            return self.stream.codec_context.decode(packet)
        except av.FFmpegError:
            return ()


class _Shape(NamedTuple):
    """What may change from one frame to the next, in joined files; a resampler takes only one of them."""

    rate: int
    layout: str
    channels: int
    sample_format: str

    @classmethod
    def of(cls, frame: av.AudioFrame) -> "_Shape":
        return cls(frame.sample_rate, frame.layout.name, frame.layout.nb_channels, frame.format.name)


@contextmanager
def opened(file: BinaryIO, max_seconds: float, demuxer: str) -> Iterator[_Track]:
    """The first audio track. Raises InvalidRequest, or UnsupportedMedia for another codec."""
    try:
        if demuxer == "mp4":
            check_tables(file, _PACKETS_PER_SECOND * (max_seconds + 1))
        file.seek(0)
        # FFmpeg opens every track's codec to look at it; the list keeps it from the ones that are not wanted.
        options = {"codec_whitelist": ",".join(_CODECS)}
        with av.open(file, "r", format=demuxer, options=options, metadata_errors="ignore") as container:
            yield _Track(container, _audio_stream(container))
    except av.FFmpegError:
        raise undecodable() from None
    except ValueError:
        if not file.closed:
            raise
        raise closed_early() from None


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream:
    if not container.streams.audio:
        raise InvalidRequest("The file has no audio track.", "file")
    stream = container.streams.audio[0]
    if stream.codec_context is None or stream.codec_context.name not in _CODECS:
        raise unsupported_codec()
    return stream
