"""The openai package for Node, against a real server with the real starter models: pytest -m node."""

from pathlib import Path

import pytest

from handlers.audio.decode import SAMPLE_RATE
from handlers.audio.waveform import Waveform
from tests.clients import npm
from tests.handlers.audio_files import encoded

pytestmark = [pytest.mark.node, pytest.mark.models]


def test_the_node_package_does_all_four_and_reads_every_error(base_url: str, tmp_path: Path) -> None:
    npm.run("check.mjs", tmp_path, BASE_URL=base_url)


def test_the_node_package_transcribes_and_speaks_as_a_stream(
    base_url: str, two_cities: Waveform, tmp_path: Path
) -> None:
    reading = tmp_path / "reading.wav"
    reading.write_bytes(encoded("wav", two_cities[: 35 * SAMPLE_RATE]))
    npm.run("audio.mjs", tmp_path, BASE_URL=base_url, READING=str(reading))
