"""Audio of any length in constant memory, the bounds on it, and the quality of what comes out."""

import os
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soxr

from handlers.audio import ffmpeg, ogg
from handlers.audio.decode import SAMPLE_RATE, decode, measure_seconds, read_blocks
from handlers.audio.waveform import Waveform
from handlers.errors import InvalidRequest, TooLarge, UnsupportedMedia
from tests.handlers.audio_files import CONTAINERS, encoded, sound_file, sweep

LARGEST_UPLOAD = 25 * 1024 * 1024


def wav(fmt: bytes, data: bytes, *, claim: int | None = None, before: bytes = b"") -> BytesIO:
    size = len(data) if claim is None else claim
    chunks = before + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return BytesIO(b"RIFF\xff\xff\xff\xffWAVE" + chunks)


def fmt(tag: int, bits: int, channels: int = 1, rate: int = SAMPLE_RATE) -> bytes:
    width = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)


def tone(frequency: float, rate: int, seconds: float = 1.0) -> Waveform:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def hours_of_silence(kind: str) -> bytes:
    """A minute of it again and again, as large as an upload may be."""
    minute = encoded(kind, np.zeros(60 * SAMPLE_RATE, np.float32))
    return minute * (LARGEST_UPLOAD // len(minute))


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every frame that FFmpeg will have decoded."""
    counts: list[int] = []
    decoded = ffmpeg._Track._decoded

    def count(track: ffmpeg._Track, packet: Any) -> Sequence[av.AudioFrame]:
        frames = decoded(track, packet)
        counts.extend(frame.samples for frame in frames)
        return frames

    monkeypatch.setattr(ffmpeg._Track, "_decoded", count)
    return counts


def ogg_pages(data: bytes) -> Iterator[int]:
    """Where each begins."""
    at = 0
    while at < len(data):
        yield at
        count = data[at + 26]
        at += 27 + count + sum(data[at + 27 : at + 27 + count])


def with_positions(data: bytes, pages: Sequence[int], position: int) -> bytes:
    """Those pages say that they end at that sample."""
    starts, changed = [*ogg_pages(data), len(data)], bytearray(data)
    for at in pages:
        changed[at + 6 : at + 14] = position.to_bytes(8, "little")
        _sign(changed, at, starts[starts.index(at) + 1])
    return bytes(changed)


def renamed(page: bytes) -> bytes:
    """Of another stream."""
    changed = bytearray(page)
    changed[14:18] = b"more"
    _sign(changed, 0, len(page))
    return bytes(changed)


def _sign(data: bytearray, start: int, stop: int) -> None:
    """The checksum of RFC 3533, section 6."""
    data[start + 22 : start + 26] = bytes(4)
    value = 0
    for byte in data[start:stop]:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    data[start + 22 : start + 26] = value.to_bytes(4, "little")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_blocks_joined_are_the_whole(kind: str) -> None:
    file = BytesIO(encoded(kind, sweep(5)))
    blocks = list(read_blocks(file, max_seconds=60))
    assert len(blocks) > 1
    assert max(map(len, blocks)) <= 1 << 19
    np.testing.assert_array_equal(np.concatenate(blocks), decode(file, max_seconds=60))


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_blocks_are_read_as_they_are_asked_for_and_closing_them_leaves_the_file_to_its_owner(kind: str) -> None:
    file = BytesIO(encoded(kind, np.random.default_rng(0).normal(0, 0.1, 60 * SAMPLE_RATE).astype(np.float32)))
    blocks = read_blocks(file, max_seconds=60)
    next(blocks)
    assert file.tell() < len(file.getbuffer()) / 4
    blocks.close()  # type: ignore[attr-defined]
    assert not file.closed


def test_ten_minutes_are_read_in_the_memory_of_one_block() -> None:
    file = sound_file(np.zeros((600 * 8_000, 2)), 8_000, subtype="PCM_U8")
    tracemalloc.start()
    try:
        assert sum(map(len, read_blocks(file, max_seconds=600))) == 600 * SAMPLE_RATE
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["wav", "m4a"])
def test_a_descriptor_without_a_name_will_do(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(encoded(kind, sweep(1)))
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
        path.unlink()
        assert len(decode(file, max_seconds=60)) / SAMPLE_RATE == pytest.approx(1, abs=0.13)


@pytest.mark.parametrize("size", [(1 << 32) - 1, 1 << 62, (1 << 64) - 1])
def test_a_box_of_an_mp4_that_claims_to_be_larger_than_any_file_takes_no_memory(tmp_path: Path, size: int) -> None:
    path = tmp_path / "upload"
    path.write_bytes(encoded("m4a", sweep(1)) + b"\0\0\0\x01uuid" + size.to_bytes(8, "big"))
    tracemalloc.start()
    try:
        with path.open("rb") as file, suppress(InvalidRequest):
            decode(file, max_seconds=60)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus"])
def test_hours_of_silence_are_refused_after_a_bounded_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours of MP3, ten of the others and more."""
    decoded, bomb = count_decoded(monkeypatch), BytesIO(hours_of_silence(kind))
    minute = len(encoded(kind, np.zeros(60 * SAMPLE_RATE, np.float32)))
    for refuse, frames in ((measure_seconds, 0), (decode, 71 * SAMPLE_RATE)):
        bomb.seek(0)
        with pytest.raises(TooLarge, match="longer than 70 seconds"):
            refuse(bomb, max_seconds=70)
        assert bomb.tell() < 10 * minute + 100_000
        assert sum(decoded) <= frames * 3  # Opus is decoded at 48 kHz


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_pages_that_tell_of_hours_are_not_read_packet_by_packet(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ffmpeg, "opened")
    for bomb in (hours_of_silence(kind), encoded(kind, np.zeros(80 * SAMPLE_RATE, np.float32))):
        with pytest.raises(TooLarge, match="longer than 70 seconds"):
            measure_seconds(BytesIO(bomb), max_seconds=70)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
@pytest.mark.parametrize("position", [0, 1 << 40])
def test_pages_that_lie_change_no_verdict(kind: str, position: int) -> None:
    """Of every page, or of one in the middle. FFmpeg leaves out pages whose checksum is wrong, so it is made right."""
    whole = encoded(kind, np.zeros(20 * SAMPLE_RATE, np.float32))
    pages = list(ogg_pages(whole))
    one = [pages[len(pages) // 2]]
    for lying in (pages[2:], one):
        data = with_positions(whole, lying, position)
        with pytest.raises(TooLarge):
            measure_seconds(BytesIO(data), max_seconds=10)
        with pytest.raises(TooLarge):
            decode(BytesIO(data), max_seconds=10)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
@pytest.mark.parametrize("position", [1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_page_that_tells_of_hours_is_believed_as_far_as_its_packets_go(kind: str, position: int) -> None:
    whole = encoded(kind, np.zeros(20 * SAMPLE_RATE, np.float32))
    pages = list(ogg_pages(whole))
    data = BytesIO(with_positions(whole, [pages[len(pages) // 2]], position))
    assert not ogg.is_longer(data, 60)
    assert measure_seconds(data, max_seconds=60) < 21


def test_the_pages_of_streams_side_by_side_count_once() -> None:
    one = encoded("opus", np.zeros(20 * SAMPLE_RATE, np.float32))
    pages = [*ogg_pages(one), len(one)]
    other = [renamed(one[at:end]) for at, end in pairwise(pages)]
    both = b"".join(one[at:end] + page for (at, end), page in zip(pairwise(pages), other, strict=True))
    assert ogg.is_longer(BytesIO(both), 15)
    assert not ogg.is_longer(BytesIO(both), 25)


def test_pages_without_end_are_looked_at_for_a_while_only() -> None:
    page = b"OggS" + bytes(23)
    file = BytesIO(encoded("opus", sweep(1)) + page * 1_000_000)
    assert not ogg.is_longer(file, 60)
    assert file.tell() < 600_000


def test_a_chain_is_bounded_as_a_whole() -> None:
    file = BytesIO(encoded("ogg", sweep(4)) * 3)
    assert len(decode(file, max_seconds=13)) / SAMPLE_RATE == pytest.approx(12, abs=0.2)
    with pytest.raises(TooLarge):
        decode(file, max_seconds=11)


@pytest.mark.parametrize(
    ("subtype", "floor"),
    [("PCM_U8", -35), ("PCM_16", -80), ("PCM_24", -100), ("PCM_32", -100), ("FLOAT", -100), ("DOUBLE", -100)]
    + [("ALAW", -30), ("ULAW", -30)],
)
def test_every_kind_of_wav_keeps_its_precision(subtype: str, floor: float) -> None:
    signal = sweep(1)
    error = decode(sound_file(signal, subtype=subtype), max_seconds=60) - signal
    assert 20 * np.log10(np.sqrt(np.mean(error**2)) / 0.3 + 1e-12) < floor


@pytest.mark.parametrize("claim", [0, 1 << 31, 0xFFFFFFFE, 0xFFFFFFFF])
def test_a_wav_that_was_streamed_ends_where_its_file_does(claim: int) -> None:
    data = (sweep(1) * 32767).astype("<i2").tobytes()
    for file in (wav(fmt(1, 16), data, claim=claim), wav(fmt(1, 16), data + b"\x01", claim=claim)):
        assert measure_seconds(file, max_seconds=60) == len(decode(file, max_seconds=60)) / SAMPLE_RATE == 1


def test_what_lies_around_the_samples_of_a_wav_is_no_sound() -> None:
    data = (sweep(1) * 32767).astype("<i2").tobytes()
    file = wav(fmt(1, 16), data, before=b"LIST\x05\0\0\0odd..\0")
    file = BytesIO(file.getvalue() + b"LIST\x08\0\0\0comments")
    assert len(decode(file, max_seconds=60)) == SAMPLE_RATE


def test_the_length_of_an_rf64_is_in_its_own_chunk() -> None:
    data = bytes(3_200)
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 0, len(data), 1_600, 0)
    file = wav(fmt(1, 16), data + b"trailing", claim=0xFFFFFFFF, before=sizes)
    assert len(decode(BytesIO(b"RF64" + file.getvalue()[4:]), max_seconds=60)) == 1_600


@pytest.mark.parametrize(
    "chunk",
    [
        fmt(1, 64),
        fmt(2, 8),  # ADPCM
        fmt(0x11, 8),  # IMA ADPCM
        fmt(0x31, 8),  # GSM
        fmt(0x55, 8),  # MP3
        fmt(3, 16),
        fmt(0xFFFE, 16) + b"\x16\0\x10\0\x04\0\0\0" + b"\x01\0" + b"x" * 14,
    ],
)
def test_a_wav_of_another_codec_reaches_no_decoder(chunk: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="codec"):
        decode(wav(chunk, bytes(1_000)), max_seconds=60)


@pytest.mark.parametrize(
    "file",
    [
        BytesIO(b"RIFF\0\0\0\0WAVE"),
        wav(fmt(1, 16)[:8], bytes(100)),
        wav(fmt(1, 16), b""),
        wav(fmt(1, 16), b"\0"),
        wav(fmt(1, 16, channels=0), bytes(100)),
        BytesIO(b"RIFF\0\0\0\0WAVEdata\x10\0\0\0" + bytes(16)),
        BytesIO(b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 100_000),
        wav(fmt(1, 16), bytes(100), before=b"junk\xff\xff\xff\xff"),
    ],
    ids=["no chunks", "short format", "no samples", "half a sample", "no channels", "no format", "chunks", "overlong"],
)
def test_a_wav_with_a_broken_header_is_refused(file: BytesIO) -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded"):
        decode(file, max_seconds=60)


def test_channels_are_mixed_by_their_mean() -> None:
    channels = np.stack([np.full(1_600, level, np.float32) for level in (0.8, 0.0, -0.4)], axis=1)
    np.testing.assert_allclose(decode(sound_file(channels, subtype="FLOAT"), max_seconds=60), 0.4 / 3, atol=1e-6)


def test_full_scale_direct_current_stays_as_it_is() -> None:
    waveform = decode(sound_file(np.ones(44_100), 44_100, subtype="FLOAT"), max_seconds=60)
    np.testing.assert_allclose(waveform[1_000:-1_000], 1, atol=1e-4)


@pytest.mark.parametrize("rate", [4_000, 8_000, 22_050, 44_100, 48_000, 96_000, 384_000])
def test_resampling_in_blocks_is_within_60_db_of_resampling_at_once(rate: int) -> None:
    signal = sweep(3, rate)
    waveform = decode(sound_file(signal, rate, subtype="FLOAT"), max_seconds=60)
    reference = soxr.resample(signal, rate, SAMPLE_RATE, quality="VHQ")
    assert len(waveform) == 3 * SAMPLE_RATE
    middle = slice(SAMPLE_RATE // 10, -SAMPLE_RATE // 10)
    error = waveform[middle] - reference[middle]
    assert 20 * np.log10(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(reference**2)) + 1e-12) < -60


@pytest.mark.parametrize("frequency", [8_300, 12_000, 20_000])
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_what_cannot_be_heard_at_16_khz_is_gone_and_not_folded_down(rate: int, frequency: float) -> None:
    waveform = decode(sound_file(tone(frequency, rate), rate, subtype="FLOAT"), max_seconds=60)
    assert np.abs(waveform[1_600:-1_600]).max() < 0.001
