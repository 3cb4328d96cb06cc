"""The openai package for Node transcribes and translates in every format, around a fake model: pytest -m node."""

from pathlib import Path

import pytest

from batching.errors import EngineFailed
from tests.clients import npm
from tests.clients.live import fake_server
from tests.gateway.fakes import FakeTranscription

pytestmark = pytest.mark.node


def test_the_node_package_reads_every_transcript(tmp_path: Path) -> None:
    handler = FakeTranscription()
    broken = FakeTranscription(wait_at=1, error=EngineFailed(), translates=False)
    with fake_server([handler]) as url, fake_server([broken]) as broken_url:
        npm.run("transcripts.mjs", tmp_path, BASE_URL=url, BROKEN_URL=broken_url)
    activities = [request.voice_activity.threshold for request, _ in handler.calls]
    assert activities.count(0.25) == 1, "the settings of `server_vad` arrive"
