"""One server with the four starter models for all tests of this package that ask for it."""

from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.live import starter_server


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with starter_server() as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[OpenAI]:
    """An OpenAI client of which only the base URL was changed."""
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> "AsyncOpenAI":
    return AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0)
