"""From samples to a file of the format a caller asked for. Everything goes out at OpenAI's own rate, 24 kHz mono."""

from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import BinaryIO, Protocol, Self, cast

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
    """Takes a waveform piece by piece and holds only what is encoded. A context manager, for those who give up halfway.

    sample_rate: of what is written. Samples beyond full scale are clipped; what is not a number becomes silence.
    """

    def __init__(self, format: str, sample_rate: int) -> None:
        self._file = BytesIO()
        self._sink = _SINKS[format](self._file)
        self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        self._samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sink.close()

    @property
    def seconds(self) -> float:
        """What the file plays so far, the codec's own padding left out."""
        return self._samples / SAMPLE_RATE

    def write(self, waveform: Waveform) -> None:
        self._pass_on(self._resampler.resample_chunk(_playable(waveform)))

    def finish(self) -> bytes:
        """The whole file."""
        self._pass_on(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._sink.close()
        return self._file.getvalue()

    def _pass_on(self, waveform: Waveform) -> None:
        self._samples += len(waveform)
        if len(waveform):
            self._sink.write(waveform.clip(-1, 1))


def _playable(waveform: Waveform) -> Waveform:
    return np.nan_to_num(waveform, nan=0.0, posinf=1.0, neginf=-1.0)


class _Sink(Protocol):
    def write(self, waveform: Waveform) -> None: ...

    def close(self) -> None:
        """Write what is left; may be called again."""


class _SoundFile:
    """libsndfile's formats."""

    def __init__(self, file: BinaryIO, format: str, subtype: str) -> None:
        self._sound = soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, subtype, format=format)

    def write(self, waveform: Waveform) -> None:
        self._sound.write(waveform)

    def close(self) -> None:
        self._sound.close()


class _Ffmpeg:
    """FFmpeg's encoders; for Opus about four times as fast as libsndfile's."""

    def __init__(self, file: BinaryIO, format: str, codec: str, bit_rate: int) -> None:
        self._container = av.open(file, "w", format=format)
        self._stream = cast(av.AudioStream, self._container.add_stream(codec, rate=SAMPLE_RATE, layout="mono"))
        self._stream.bit_rate = bit_rate
        self._closed = False

    def write(self, waveform: Waveform) -> None:
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _Pcm:
    """Signed 16-bit little-endian samples, nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, waveform: Waveform) -> None:
        self._file.write((waveform * 32767).astype("<i2").data)

    def close(self) -> None:
        """Nothing is left."""


_SINKS: Mapping[str, Callable[[BinaryIO], _Sink]] = MappingProxyType(
    {
        "mp3": lambda file: _SoundFile(file, "MP3", "MPEG_LAYER_III"),
        "opus": lambda file: _Ffmpeg(file, "ogg", "libopus", 48_000),
        "aac": lambda file: _Ffmpeg(file, "adts", "aac", 64_000),
        "flac": lambda file: _SoundFile(file, "FLAC", "PCM_16"),
        "wav": lambda file: _SoundFile(file, "WAV", "PCM_16"),
        "pcm": _Pcm,
    }
)
