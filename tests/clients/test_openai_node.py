"""The openai package for Node, against a real server with the real starter models: pytest -m node."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.node, pytest.mark.models]

SOURCES = Path(__file__).parent / "node"


def test_the_node_package_does_all_four_and_reads_every_error(base_url: str, tmp_path: Path) -> None:
    for source in SOURCES.iterdir():
        shutil.copy(source, tmp_path)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=tmp_path, check=True)
    environ = {**os.environ, "BASE_URL": base_url}
    ran = subprocess.run(["node", "check.mjs"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
