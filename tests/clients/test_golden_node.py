"""The openai package for Node reads the golden streams as OpenAI's Python package does: pytest -m node."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.test_golden_streams import GOLDEN

pytestmark = pytest.mark.node

SOURCES = Path(__file__).parent / "node"


def test_the_node_package_reads_every_golden_stream(tmp_path: Path) -> None:
    for source in SOURCES.iterdir():
        shutil.copy(source, tmp_path)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True)
    environ = {**os.environ, "GOLDEN": str(GOLDEN)}
    ran = subprocess.run(["node", "golden.mjs"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
