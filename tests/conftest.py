"""What all tests share: how they run, and fixtures."""

import os

# Before torch is imported: a tiny model gains nothing from a second thread and loses much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before onnxruntime is imported: it would tell its maker of every model that it opens.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Sequence
from pathlib import Path

# Before Numba is imported: two processes that compile at once spoil its cache, and what is loaded from it crashes.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba" / worker))

import pytest
from hypothesis import HealthCheck, settings

from gateway.settings import Settings

# The same examples every time, and no look at the wall clock.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

_CLIENTS = Path(__file__).parent / "clients"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Where tests run in several processes, a module has one, and so have all clients, which share a server."""
    for item in items:
        shares = _CLIENTS if _CLIENTS in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(shares)))


@pytest.fixture
def anyio_backend() -> object:
    """asyncio only: uvicorn runs nothing else. Modules that drive time override this with tests.clock.MANUAL_CLOCK."""
    return "asyncio"


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where `make test` has put the starter models and the speech samples."""
    return Settings.load().models_dir
