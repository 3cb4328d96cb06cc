"""Fixtures that more than one package's tests share."""

import os

# Before torch is imported: a tiny model gains nothing from a second thread and loses much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before onnxruntime is imported: it would tell its maker of every model that it opens.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest

from gateway.settings import Settings


@pytest.fixture
def anyio_backend() -> object:
    """asyncio only: uvicorn runs nothing else. Modules that drive time override this with tests.clock.MANUAL_CLOCK."""
    return "asyncio"


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where `make test` has put the starter models and the speech samples."""
    return Settings.load().models_dir
