"""The batching tests stand on a clock that moves only when they say so."""

import pytest

from tests.clock import MANUAL_CLOCK


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK
