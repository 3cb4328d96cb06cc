"""Unpack one folder of a zip archive, and nothing outside it."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

CHUNK = 1 << 20


def unpack(archive: Path, folder: str, target: Path, report: Callable[[int, int], None]) -> None:
    """Write the files below `folder` in `archive` into the new folder `target`; `report(done, total)` in bytes.

    Raises BadZipFile, before anything is written, if there is no such file or one would land outside `target`.
    """
    with ZipFile(archive) as zipped:
        members = {_inside(member, folder): member for member in _files_below(zipped, folder)}
        if not members:
            raise BadZipFile(f"there is no file below {folder!r}")
        total = sum(member.file_size for member in members.values())
        done = 0
        for path, member in members.items():
            _extract(zipped, member, target / path)
            done += member.file_size
            report(done, total)


def _files_below(zipped: ZipFile, folder: str) -> list[ZipInfo]:
    return [info for info in zipped.infolist() if info.filename.startswith(f"{folder}/") and not info.is_dir()]


def _inside(member: ZipInfo, folder: str) -> PurePosixPath:
    """The member's path below `folder`; refuses links, and whatever some system reads as a way out."""
    path = PurePosixPath(member.filename)
    is_plain_file = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
    if not is_plain_file or ".." in path.parts or any(mark in member.filename for mark in "\\:"):
        raise BadZipFile(f"{member.filename!r} would be written outside the cache")
    return path.relative_to(folder)


def _extract(zipped: ZipFile, member: ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(member) as packed, path.open("xb") as file:
        shutil.copyfileobj(packed, file, CHUNK)
        file.flush()
        # The rename that makes the folder visible must not reach the disk before its files do.
        os.fsync(file.fileno())
