"""Programs in node/ that use the openai package for Node, unmodified."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "node"


def run(program: str, folder: Path, **environ: str) -> None:
    """Install the package in `folder` and run the program there; fails with what it wrote if it finds a fault."""
    for source in SOURCES.iterdir():
        shutil.copy(source, folder)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
    ran = subprocess.run(
        ["node", program], cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
