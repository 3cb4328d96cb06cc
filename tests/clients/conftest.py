"""One server with the four starter models for all tests of this package that ask for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from handlers.audio.decode import decode
from handlers.audio.waveform import Waveform
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES
from tests.clients.live import LiveServer, live_server


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    # Where others compute beside it, as on a machine that tests several things, threads that wait for each other after
    # every operation make a transcription ten times as slow.
    with live_server(threads="1") as server:
        yield server


@pytest.fixture(scope="session")
def base_url(server: LiveServer) -> str:
    return server.url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[OpenAI]:
    """An OpenAI client of which only the base URL was changed."""
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> "AsyncOpenAI":
    return AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0)


@pytest.fixture(scope="session")
def two_cities(models_dir: Path) -> Waveform:
    """44 seconds of a reading, at 16 kHz."""
    with (fetch(SPEECH_SAMPLES, models_dir) / "two_cities.wav").open("rb") as file:
        return decode(file, max_seconds=60)
