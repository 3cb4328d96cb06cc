"""From samples to audio of the format a caller asked for, piece by piece, at OpenAI's own rate: 24 kHz mono."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, Self, cast

import av
import numpy as np
import soundfile
import soxr

from handlers.audio.waveform import Waveform

SAMPLE_RATE = 24_000

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
)


class Encoder:
    """Takes a waveform piece by piece and gives what is encoded of it so far; all pieces joined are the file.

    Nothing that was given is ever changed afterwards, so lengths are left open where a format has them in its head: WAV
    says 0xFFFFFFFF, FLAC 0 samples. A context manager, for those who give up halfway.

    sample_rate: of what is written. Samples beyond full scale are clipped; what is not a number becomes silence.
    """

    def __init__(self, format: str, sample_rate: int) -> None:
        self._sink = _SINKS[format]()
        self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        self._samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """What the file plays so far, the codec's own padding left out."""
        return self._samples / SAMPLE_RATE

    def write(self, waveform: Waveform) -> bytes:
        """What can be sent now; a codec keeps back less than a fifth of a second."""
        self._pass_on(self._resampler.resample_chunk(_playable(waveform)))
        return self._sink.take()

    def finish(self) -> bytes:
        """The rest of the file."""
        self._pass_on(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._sink.close()
        return self._sink.take()

    def close(self) -> None:
        """May be called again, and after `finish`."""
        self._sink.close()

    def _pass_on(self, waveform: Waveform) -> None:
        self._samples += len(waveform)
        if len(waveform):
            self._sink.write(waveform.clip(-1, 1))


def _playable(waveform: Waveform) -> Waveform:
    return np.nan_to_num(waveform, nan=0.0, posinf=1.0, neginf=-1.0)


class _Tape:
    """A file that can only grow: what is written over its beginning comes too late, and is left out."""

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._length = 0
        self._position = 0

    def write(self, data: bytes) -> int:
        size = len(data)
        if self._position == self._length:
            self._fresh += data
            self._length += size
        self._position += size
        return size

    def take(self) -> bytes:
        """What has come since the last time."""
        fresh = bytes(self._fresh)
        self._fresh.clear()
        return fresh


class _SeekableTape(_Tape):
    """For libsndfile, which goes back to complete a header."""

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        return b""


class _Sink(Protocol):
    def write(self, waveform: Waveform) -> None: ...

    def take(self) -> bytes:
        """What is encoded and was not taken yet."""

    def close(self) -> None:
        """Encode what is left; may be called again."""


class _Flac:
    """libsndfile's encoder, which completes the header when it is closed: too late here."""

    def __init__(self) -> None:
        self._tape = _SeekableTape()
        self._sound = soundfile.SoundFile(self._tape, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC")

    def write(self, waveform: Waveform) -> None:
        self._sound.write(waveform)

    def take(self) -> bytes:
        return self._tape.take()

    def close(self) -> None:
        self._sound.close()


_Options = Mapping[str, str]
_NONE: _Options = MappingProxyType({})


class _Ffmpeg:
    """FFmpeg's encoders.

    options: of the codec. muxer: options beside those that keep it from holding anything back.
    """

    def __init__(self, format: str, codec: str, bit_rate: int, options: _Options, muxer: _Options = _NONE) -> None:
        self._tape = _Tape()
        self._container = av.open(self._tape, "w", format=format, options={"flush_packets": "1", **muxer})
        stream = self._container.add_stream(codec, rate=SAMPLE_RATE, layout="mono", options=dict(options))
        self._stream = cast(av.AudioStream, stream)
        self._stream.bit_rate = bit_rate
        self._closed = False

    def write(self, waveform: Waveform) -> None:
        self._container.mux(self._stream.encode(_frame(waveform, "flt")))

    def take(self) -> bytes:
        return self._tape.take()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._container:
            self._container.mux(self._stream.encode(None))


class _Mp3:
    """FFmpeg's encoder without a container, which would wait for the interpreter twice for each frame.

    Of constant bit rate, so that a player can tell how long it is by its size.
    """

    def __init__(self) -> None:
        self._fresh = bytearray()
        self._codec = av.CodecContext.create("libmp3lame", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = SAMPLE_RATE, "mono", "fltp"
        self._codec.bit_rate = 96_000
        self._codec.options = {"compression_level": "7"}
        self._closed = False

    def write(self, waveform: Waveform) -> None:
        self._encode(_frame(waveform, "fltp"))

    def take(self) -> bytes:
        fresh = bytes(self._fresh)
        self._fresh.clear()
        return fresh

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._encode(None)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        for packet in self._codec.encode(frame):
            self._fresh += packet


def _frame(waveform: Waveform, format: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format=format, layout="mono")
    frame.sample_rate = SAMPLE_RATE
    return frame


class _Pcm:
    """Signed 16-bit little-endian samples after `head`."""

    def __init__(self, head: bytes = b"") -> None:
        self._fresh = bytearray(head)

    def write(self, waveform: Waveform) -> None:
        self._fresh += (waveform * 32767).astype("<i2").data

    def take(self) -> bytes:
        fresh = bytes(self._fresh)
        self._fresh.clear()
        return fresh

    def close(self) -> None:
        """Nothing is left."""


_OPEN_LENGTH = b"\xff" * 4
_WAV_HEAD = (
    b"RIFF" + _OPEN_LENGTH + b"WAVEfmt " + (16).to_bytes(4, "little")  # the size of what describes the samples
    + b"\1\0\1\0"  # integers, one channel
    + SAMPLE_RATE.to_bytes(4, "little") + (2 * SAMPLE_RATE).to_bytes(4, "little")  # samples and bytes a second
    + b"\2\0\x10\0"  # bytes and bits a sample
    + b"data" + _OPEN_LENGTH
)  # fmt: skip

# With the settings that the codecs start from, encoding takes as long as the starter voice takes to speak.
_SINKS: Mapping[str, Callable[[], _Sink]] = MappingProxyType(
    {
        "mp3": _Mp3,
        # Pages of a fifth of a second: FFmpeg's own of a second would make every sentence that much later.
        "opus": lambda: _Ffmpeg("ogg", "libopus", 48_000, {"compression_level": "5"}, {"page_duration": "200000"}),
        "aac": lambda: _Ffmpeg("adts", "aac", 64_000, {"aac_coder": "fast"}),
        "flac": _Flac,
        "wav": lambda: _Pcm(_WAV_HEAD),
        "pcm": _Pcm,
    }
)
