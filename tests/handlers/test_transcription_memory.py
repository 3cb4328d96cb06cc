"""What a process that reads uploads takes in memory, however long a small file is, or says that it is. Linux."""

import os
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from handlers.errors import InvalidRequest, TooLarge
from handlers.spec import ModelSpec, Task
from handlers.transcription.isolated import IsolatedFiles
from handlers.transcription.types import VoiceActivity
from tests.handlers.audio_files import encoded, sound_file, sweep
from tests.handlers.test_audio_blocks import hours_of_silence, ogg_pages, with_positions
from tests.processes import forget_peak, memory

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

MOST_BYTES = 40_000_000
"""Over what the process has when it has begun. A second of samples takes 64 kB, so an hour would be 230 MB."""


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[IsolatedFiles]:
    spec = ModelSpec("whisper", Task.TRANSCRIPTION, "dir:here")
    files = IsolatedFiles(spec, tmp_path, 3600.0, factory="tests.handlers.speech_in_child:open_files")
    await files.start()
    yield files
    await files.aclose()


class Peak:
    """Of the process that reads and of this one, over what they have here."""

    def __init__(self, files: IsolatedFiles) -> None:
        self._before = {pid: memory(pid).resident for pid in (files._process.pid or 0, os.getpid())}
        for pid in self._before:
            forget_peak(pid)

    @property
    def bytes(self) -> int:
        return max(memory(pid).peak - before for pid, before in self._before.items())


async def measured(files: IsolatedFiles, path: Path) -> tuple[float, int]:
    """Seconds of the file, and bytes that it took to find out."""
    with path.open("rb") as file:
        reading = await files.open(file, VoiceActivity(), 30.0)
        await reading.measure()  # what is imported and set up once
        peak = Peak(files)
        return await reading.measure(), peak.bytes


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus"])
async def test_hours_in_a_small_file_are_refused_in_little_memory(
    tmp_path: Path, files: IsolatedFiles, kind: str
) -> None:
    (tmp_path / "bomb").write_bytes(hours_of_silence(kind))
    with (tmp_path / "bomb").open("rb") as file:
        reading = await files.open(file, VoiceActivity(), 30.0)
        peak = Peak(files)
        with pytest.raises(TooLarge):
            await reading.measure()
    assert peak.bytes < MOST_BYTES


def wav_of_4_gb() -> bytes:
    data = bytearray(sound_file(sweep(1)).getvalue())
    at = data.index(b"data") + 4
    return bytes(data[:at] + struct.pack("<I", 0xFFFFFFF0) + data[at + 4 :])


def flac_of_a_month() -> bytes:
    """The number of samples is in the last 36 bits before the checksum of the first block."""
    data = bytearray(encoded("flac", sweep(1)))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return bytes(data)


def ogg_of_a_year() -> bytes:
    data = encoded("opus", sweep(1))
    return with_positions(data, list(ogg_pages(data))[-1:], 48_000 * 86_400 * 365)


@pytest.mark.parametrize("lie", [wav_of_4_gb(), flac_of_a_month(), ogg_of_a_year()], ids=["wav", "flac", "ogg"])
async def test_a_header_that_tells_of_hours_takes_no_memory(tmp_path: Path, files: IsolatedFiles, lie: bytes) -> None:
    (tmp_path / "lie").write_bytes(lie)
    seconds, taken = await measured(files, tmp_path / "lie")
    assert seconds == pytest.approx(1, abs=0.1)
    assert taken < MOST_BYTES / 4


async def test_a_table_that_tells_of_hours_takes_no_memory(tmp_path: Path, files: IsolatedFiles) -> None:
    data = bytearray(encoded("m4a", sweep(1)))
    at = data.index(b"stsz") + 12
    data[at : at + 4] = b"\x7f\xff\xff\xff"
    (tmp_path / "lie").write_bytes(data)
    with (tmp_path / "lie").open("rb") as file:
        reading = await files.open(file, VoiceActivity(), 30.0)
        peak = Peak(files)
        with pytest.raises(InvalidRequest, match="in more pieces"):
            await reading.measure()
    assert peak.bytes < MOST_BYTES


async def test_a_quarter_of_an_hour_is_read_in_the_memory_of_a_few_windows(
    tmp_path: Path, files: IsolatedFiles
) -> None:
    (tmp_path / "long").write_bytes(encoded("flac", np.zeros(15 * 60 * 16_000, np.float32)))
    with (tmp_path / "long").open("rb") as file:
        reading = await files.open(file, VoiceActivity(), 30.0)
        await reading.read()
        peak = Peak(files)
        turns = 1
        while await reading.read() is not None:
            turns += 1
        await reading.close()
    assert turns >= 30
    assert reading.duration == 900
    assert peak.bytes < MOST_BYTES
