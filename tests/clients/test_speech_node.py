"""The openai package for Node receives speech while it is made, around a fake model: pytest -m node."""

from pathlib import Path

import pytest

from batching.errors import EngineFailed
from tests.clients import npm
from tests.clients.live import fake_server
from tests.gateway.fakes import FakeSpeech

pytestmark = pytest.mark.node


def test_the_node_package_receives_speech_as_it_is_made(tmp_path: Path) -> None:
    whole = FakeSpeech()
    endless = FakeSpeech(wait_at=1)
    broken = FakeSpeech(failure=EngineFailed(), fail_at=1)
    with fake_server([whole]) as url, fake_server([endless]) as endless_url, fake_server([broken]) as broken_url:
        npm.run("speech.mjs", tmp_path, BASE_URL=url, ENDLESS_URL=endless_url, BROKEN_URL=broken_url)
    assert [handler.open_syntheses for handler in (whole, endless, broken)] == [0, 0, 0]
    assert endless.closed_syntheses == 2
