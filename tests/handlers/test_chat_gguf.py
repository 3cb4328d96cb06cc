"""Weights in GGUF form are converted once, whatever became of earlier attempts; what writes them is a stand-in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handlers.chat import gguf
from handlers.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").touch()
    return tmp_path


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a conversion has written to."""
    folders: list[Path] = []

    def write(source: Path, folder: Path) -> None:
        folders.append(folder)
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(gguf, "_write", write)
    return folders


def test_the_copy_is_made_once(folder: Path, written: list[Path]) -> None:
    assert gguf.needs_conversion(folder)
    copies = {gguf.prepare(folder) for _ in range(2)}
    assert copies == {folder / "safetensors"} and len(written) == 1
    assert not gguf.needs_conversion(folder)


def test_what_a_killed_conversion_left_is_removed(folder: Path, written: list[Path]) -> None:
    gguf.prepare(folder)
    (aside,) = written
    (folder / "safetensors").rename(aside)
    (aside / "half").touch()
    copy = gguf.prepare(folder)
    assert [path.name for path in copy.iterdir()] == ["model.safetensors"]
    assert not aside.exists()


def test_who_waited_for_another_process_takes_its_copy(
    folder: Path, written: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def others_turn(path: Path) -> Iterator[None]:
        (folder / "safetensors").mkdir()
        yield

    monkeypatch.setattr(gguf, "FileLock", others_turn)
    assert gguf.prepare(folder) == folder / "safetensors"
    assert written == []


def test_a_file_that_cannot_be_converted_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "half").touch()
        raise ValueError("not a GGUF file")

    monkeypatch.setattr(gguf, "_write", fail)
    with pytest.raises(ModelLoadError, match="fetch it again"):
        gguf.prepare(folder)
    assert {path.name for path in folder.iterdir()} <= {"model.gguf", ".safetensors.lock"}


def test_other_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    assert gguf.prepare(tmp_path) == tmp_path


def test_of_two_files_none_is_chosen(folder: Path) -> None:
    (folder / "other.gguf").touch()
    with pytest.raises(ModelLoadError, match="keep the one"):
        gguf.prepare(folder)
