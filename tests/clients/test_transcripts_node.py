"""The openai package for Node transcribes and translates in every format, around a fake model: pytest -m node."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from batching.errors import EngineFailed
from tests.clients.live import fake_server
from tests.gateway.fakes import FakeTranscription

pytestmark = pytest.mark.node

SOURCES = Path(__file__).parent / "node"


def test_the_node_package_reads_every_transcript(tmp_path: Path) -> None:
    for source in SOURCES.iterdir():
        shutil.copy(source, tmp_path)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True)
    handler = FakeTranscription()
    broken = FakeTranscription(wait_at=1, error=EngineFailed(), translates=False)
    with fake_server([handler]) as url, fake_server([broken]) as broken_url:
        environ = {**os.environ, "BASE_URL": url, "BROKEN_URL": broken_url}
        ran = subprocess.run(["node", "transcripts.mjs"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    activities = [request.voice_activity.threshold for request, _ in handler.calls]
    assert activities.count(0.25) == 1, "the settings of `server_vad` arrive"
