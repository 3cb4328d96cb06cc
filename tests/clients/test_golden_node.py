"""The openai package for Node reads the golden streams as OpenAI's Python package does: pytest -m node."""

from pathlib import Path

import pytest

from tests.clients import npm
from tests.gateway.test_golden_streams import GOLDEN

pytestmark = pytest.mark.node


def test_the_node_package_reads_every_golden_stream(tmp_path: Path) -> None:
    npm.run("golden.mjs", tmp_path, GOLDEN=str(GOLDEN))
