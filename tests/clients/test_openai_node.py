"""The openai package for Node, against a real server with the real starter models: pytest -m node."""

from pathlib import Path

import pytest

from tests.clients import npm

pytestmark = [pytest.mark.node, pytest.mark.models]


def test_the_node_package_does_all_four_and_reads_every_error(base_url: str, tmp_path: Path) -> None:
    npm.run("check.mjs", tmp_path, BASE_URL=base_url)
