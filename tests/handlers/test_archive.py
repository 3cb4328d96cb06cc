"""Unpacking one folder of an archive, hostile ones included."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from handlers.sources.archive import unpack

Files = Mapping[str | zipfile.ZipInfo, bytes]


def archive_of(files: Files, tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return tmp_path / "archive.zip"


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def symlink(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["model/../../evil", "model/..\\..\\evil", "model/C:/evil", symlink("model/link"), "model/.."],
    ids=["parent", "backslash", "drive", "symlink", "only dots"],
)
def test_an_entry_that_points_outside_is_refused_before_anything_is_written(
    tmp_path: Path, name: str | zipfile.ZipInfo
) -> None:
    archive = archive_of({"model/a": b"a", name: b"/etc/passwd"}, tmp_path)

    with pytest.raises(zipfile.BadZipFile, match="would be written outside the cache"):
        unpack(archive, "model", tmp_path / "target", ignore)

    assert list(tmp_path.iterdir()) == [archive]


def test_absolute_names_stay_inside(tmp_path: Path) -> None:
    archive = archive_of({"model/a": b"a", f"{tmp_path}/evil": b"", f"model/{tmp_path}/inside": b""}, tmp_path)

    unpack(archive, "model", tmp_path / "target", ignore)

    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "target" / tmp_path.relative_to("/") / "inside").is_file()


def test_only_the_folder_is_unpacked_not_what_begins_like_it(tmp_path: Path) -> None:
    archive = archive_of({"model/": b"", "model/sub/": b"", "model/sub/a": b"a", "model2/b": b"b"}, tmp_path)

    unpack(archive, "model", tmp_path / "target", ignore)

    assert [path.name for path in (tmp_path / "target").rglob("*")] == ["sub", "a"]


def test_progress_counts_the_bytes_of_each_file(tmp_path: Path) -> None:
    archive = archive_of({"model/a": b"a" * 100, "model/b": b"b" * 20}, tmp_path)
    seen: list[tuple[int, int]] = []

    unpack(archive, "model", tmp_path / "target", lambda done, total: seen.append((done, total)))

    assert seen == [(100, 120), (120, 120)]
