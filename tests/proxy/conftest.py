"""Every timeout of the proxy is on the event loop's clock, which moves here only when a test says so."""

import pytest

from tests.clock import MANUAL_CLOCK


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK
