import gc
from io import BytesIO

import numpy as np
import pytest
import soundfile

from handlers.audio.decode import SAMPLE_RATE as DECODED_RATE
from handlers.audio.decode import decode
from handlers.audio.encode import MEDIA_TYPES, SAMPLE_RATE, Encoder
from handlers.audio.tempo import change_tempo
from handlers.audio.waveform import Waveform
from tests.handlers.audio_files import likeness, sweep

# The codec's own padding; ADTS has no field to leave it out when playing, and MP3 only one that is written last.
PADDING = {"aac": 0.072, "mp3": 0.096, "opus": 0.001, "flac": 0.0, "wav": 0.0, "pcm": 0.0}
SIGNATURES = {"aac": b"\xff\xf1", "mp3": b"\xff", "opus": b"OggS", "flac": b"fLaC", "wav": b"RIFF", "pcm": b""}


def encode(format: str, waveform: Waveform, rate: int = SAMPLE_RATE, piece: int = 10_000) -> tuple[bytes, float]:
    encoder = Encoder(format, rate)
    pieces = [encoder.write(waveform[start : start + piece]) for start in range(0, len(waveform), piece)]
    return b"".join([*pieces, encoder.finish()]), encoder.seconds


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_what_is_written_comes_out_at_once_but_for_a_fifth_of_a_second(format: str) -> None:
    signal = sweep(3, SAMPLE_RATE)
    encoder = Encoder(format, SAMPLE_RATE)
    first = encoder.write(signal[: 2 * SAMPLE_RATE])
    second = encoder.write(signal[2 * SAMPLE_RATE :])
    whole = first + second + encoder.finish()
    for given, seconds in ((first, 2), (first + second, 3)):
        heard = len(played(format, given)) / DECODED_RATE
        assert seconds - 0.25 < heard <= seconds + PADDING[format]
    assert likeness(played(format, whole), sweep(3, DECODED_RATE)) > 0.98


def test_lengths_are_left_open() -> None:
    wav, flac = (encode(format, sweep(1, SAMPLE_RATE))[0] for format in ("wav", "flac"))
    assert (wav[4:8], wav[40:44]) == (b"\xff" * 4, b"\xff" * 4)
    # STREAMINFO: 36 bits of samples at the end of its first 18 bytes, then an MD5 sum that is not known either.
    assert int.from_bytes(flac[8 + 13 : 8 + 18], "big") & (1 << 36) - 1 == 0
    assert flac[26:42] == bytes(16)
    assert len(wav) == 44 + 2 * SAMPLE_RATE


def played(format: str, audio: bytes) -> Waveform:
    """At 16 kHz, as a listener's decoder gives it."""
    file = BytesIO(audio)
    if format == "pcm":
        samples, _ = soundfile.read(file, format="RAW", samplerate=SAMPLE_RATE, channels=1, subtype="PCM_16")
        file = BytesIO()
        soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return decode(file, max_seconds=60)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_what_is_encoded_plays_as_what_went_in(format: str) -> None:
    audio, seconds = encode(format, sweep(2, SAMPLE_RATE))
    waveform = played(format, audio)
    assert audio.startswith(SIGNATURES[format])
    assert seconds == pytest.approx(2, abs=0.001)
    assert len(waveform) / DECODED_RATE == pytest.approx(2, abs=PADDING[format] + 0.001)
    assert likeness(waveform, sweep(2, DECODED_RATE)) > 0.98


@pytest.mark.parametrize("format", ["opus", "flac", "wav", "pcm"])
def test_the_codec_adds_no_delay(format: str) -> None:
    signal = sweep(1, SAMPLE_RATE)
    signal[: SAMPLE_RATE // 2] = 0
    waveform = played(format, encode(format, signal)[0])
    loud = int(np.argmax(np.abs(waveform) > 0.1)) / DECODED_RATE
    assert loud == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("format", ["pcm", "opus", "aac"])
def test_engines_of_other_rates_are_resampled(format: str, rate: int) -> None:
    audio, seconds = encode(format, sweep(1, rate), rate)
    assert seconds == pytest.approx(1, abs=0.001)
    assert likeness(played(format, audio), sweep(1, DECODED_RATE)) > 0.98


def test_pcm_is_16_bit_little_endian_at_24_khz_without_a_header() -> None:
    audio, _ = encode("pcm", np.array([0, 0.5, -1], np.float32))
    np.testing.assert_array_equal(np.frombuffer(audio, "<i2"), [0, 16383, -32767])


def test_wav_is_16_bit_at_24_khz() -> None:
    audio, _ = encode("wav", sweep(0.1, SAMPLE_RATE))
    info = soundfile.info(BytesIO(audio))
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (24_000, 1, "PCM_16", 2_400)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_samples_beyond_full_scale_are_clipped_and_what_is_no_number_is_silent(format: str) -> None:
    signal = np.repeat(np.array([3.0, -np.inf, np.nan], np.float32), SAMPLE_RATE // 3)
    waveform = played(format, encode(format, signal)[0])
    assert np.isfinite(waveform).all()
    assert np.abs(waveform[-DECODED_RATE // 6 : -DECODED_RATE // 10]).max() < 0.05


def test_clipping_does_not_wrap_around() -> None:
    samples = np.frombuffer(encode("pcm", np.full(100, 1.5, np.float32))[0], "<i2")
    np.testing.assert_array_equal(samples, 32767)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_nothing_written_is_zero_seconds(format: str) -> None:
    assert encode(format, np.zeros(0, np.float32))[1] == 0


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_an_encoder_given_up_halfway_is_closed_without_noise(format: str) -> None:
    with pytest.raises(KeyboardInterrupt), Encoder(format, SAMPLE_RATE) as encoder:
        encoder.write(sweep(0.5, SAMPLE_RATE))
        raise KeyboardInterrupt
    del encoder
    gc.collect()


@pytest.mark.parametrize("factor", [0.5, 1.6, 3.2])
def test_tempo_changes_the_length_and_keeps_the_pitch(factor: float) -> None:
    tone = np.sin(2 * np.pi * 300 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    changed = change_tempo(tone, SAMPLE_RATE, factor)
    assert len(changed) == pytest.approx(len(tone) / factor, rel=0.05)
    loudest = np.argmax(np.abs(np.fft.rfft(changed))) * SAMPLE_RATE / len(changed)
    assert loudest == pytest.approx(300, abs=3)


def test_no_sound_stays_no_sound() -> None:
    assert len(change_tempo(np.zeros(0, np.float32), SAMPLE_RATE, 2)) == 0
