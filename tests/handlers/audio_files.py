"""Small audio files of every kind that is taken, made in memory."""

import random
from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType
from typing import cast

import av
import numpy as np
import soundfile

from handlers.audio.waveform import Waveform

RATE = 16_000

# What FFmpeg calls the container and the codec; "ogg" is written by libsndfile, as FFmpeg here has no good Vorbis.
CONTAINERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "aac": ("adts", "aac"),
        "flac": ("flac", "flac"),
        "m4a": ("mp4", "aac"),
        "mp3": ("mp3", "libmp3lame"),
        "mp4": ("mp4", "aac"),
        "mpga": ("mp2", "mp2"),
        "ogg": ("ogg", "vorbis"),
        "opus": ("ogg", "libopus"),
        "wav": ("wav", "pcm_s16le"),
        "webm": ("webm", "libopus"),
    }
)

# As cameras and browsers write them: no index at the end, but a piece of it before each fragment.
_FRAGMENTED = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}


def sweep(seconds: float, rate: int = RATE) -> Waveform:
    """A tone that rises from 200 Hz, so that no two stretches of it look alike."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time)).astype(np.float32)


def encoded(kind: str, waveform: Waveform, rate: int = RATE) -> bytes:
    """`waveform` in a container of CONTAINERS."""
    if kind == "ogg":
        return sound_file(waveform, rate, "OGG", "VORBIS").getvalue()
    container_format, codec = CONTAINERS[kind]
    file = BytesIO()
    options = _FRAGMENTED if kind == "mp4" else {}
    with av.open(file, "w", format=container_format, options=options) as container:
        stream = cast(av.AudioStream, container.add_stream(codec, rate=48_000 if codec == "libopus" else rate))
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def sound_file(samples: object, rate: int = RATE, format: str = "WAV", subtype: str = "PCM_16") -> BytesIO:
    """What libsndfile writes: [samples] or [samples, channels], a second at a time: more overflows Vorbis's stack."""
    file = BytesIO()
    waveform = np.asarray(samples)
    channels = 1 if waveform.ndim == 1 else waveform.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=format) as sound:
        for at in range(0, len(waveform), rate):
            sound.write(waveform[at : at + rate])
    file.seek(0)
    return file


def damaged(data: bytes, seed: int) -> bytes:
    """`data` cut short, with flipped bits, with a beginning that lies, or with a stretch lost or repeated."""
    rng = random.Random(seed)
    broken = bytearray(data)
    match seed % 5:
        case 0:
            del broken[len(broken) * rng.choice([1, 10, 50, 99]) // 100 :]
        case 1:
            for _ in range(max(1, len(broken) // 100)):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        case 2:
            for _ in range(rng.randrange(1, 12)):
                broken[rng.randrange(min(len(broken), 600))] = rng.randrange(256)
        case 3:
            at, length = rng.randrange(len(broken)), rng.randrange(1, 400)
            broken[at : at + rng.choice([0, length])] = rng.choice([b"", broken[:length]])
        case _:
            at = rng.randrange(min(len(broken), 2_000))
            broken[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
    return bytes(broken)


def likeness(one: Waveform, other: Waveform) -> float:
    """The highest correlation of two waveforms at any offset: 1 is the same signal."""
    size = 1 << (len(one) + len(other)).bit_length()
    products = np.fft.irfft(np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size)), size)
    return float(products.max() / (np.linalg.norm(one) * np.linalg.norm(other)))
