"""Fetching ahead: what is shown meanwhile, and the conversion that is done along the way."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gateway.pull import fetch_all, missing, pull
from gateway.settings import Settings
from handlers.errors import SourceError
from handlers.sources import Progress
from handlers.spec import ModelSpec, Task


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models="none", models_dir=tmp_path, offline=True)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Fetching is pretended: the sources asked for, and whether without a network."""
    asked: list[tuple[str, bool]] = []

    def fetch(source: str, cache_dir: Path, *, progress: Progress, offline: bool) -> Path:
        asked.append((source, offline))
        progress("waiting", 0, None)
        progress("downloading", 1_000_000, 2_000_000)
        return cache_dir / source.partition(":")[2]

    monkeypatch.setattr("gateway.pull.fetch", fetch)
    return asked


def shown(*, terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, force_terminal=terminal, width=120, color_system=None), output


def test_elsewhere_than_on_a_terminal_it_writes_a_line_before_and_after(
    settings: Settings, steps: list[tuple[str, bool]]
) -> None:
    console, output = shown(terminal=False)

    folders = fetch_all({"a": "dir:x", "b": "dir:y"}, settings, console)

    assert folders == {"a": settings.models_dir / "x", "b": settings.models_dir / "y"}
    assert steps == [("dir:x", True), ("dir:y", True)]
    assert output.getvalue().splitlines() == ["a: fetching dir:x", "a: is here", "b: fetching dir:y", "b: is here"]


def test_on_a_terminal_it_draws_a_bar_that_names_the_step(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    console, output = shown(terminal=True)

    def fetch(source: str, cache_dir: Path, *, progress: Progress, offline: bool) -> Path:
        progress("downloading", 1_000_000, 2_000_000)
        raise SourceError("interrupted")

    monkeypatch.setattr("gateway.pull.fetch", fetch)
    with pytest.raises(SourceError):
        fetch_all({"a": "dir:x"}, settings, console)

    assert "a: downloading" in output.getvalue() and "1.0/2.0 MB" in output.getvalue()
    assert "fetching" not in output.getvalue()


def test_weights_in_gguf_form_are_converted_at_once(
    settings: Settings, steps: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Path] = []
    monkeypatch.setattr("gateway.pull.prepare", prepared.append)
    for name in ("packed", "other"):
        (settings.models_dir / name).mkdir()
        (settings.models_dir / name / "model.gguf").touch()
    (settings.models_dir / "plain").mkdir()
    specs = [
        ModelSpec(id="packed", task=Task.CHAT, source="dir:packed"),
        ModelSpec(id="plain", task=Task.CHAT, source="dir:plain"),
        ModelSpec(id="other", task=Task.EMBEDDINGS, source="dir:other"),
    ]
    console, output = shown(terminal=False)

    pull(specs, settings, console)

    assert prepared == [settings.models_dir / "packed"]
    assert output.getvalue().splitlines()[-1] == "packed: converting to safetensors, which happens once"


def test_only_what_is_not_here_is_missing(tmp_path: Path) -> None:
    here = ModelSpec(id="here", task=Task.CHAT, source=f"dir:{tmp_path}")
    gone = ModelSpec(id="gone", task=Task.CHAT, source=f"dir:{tmp_path}/gone")

    assert missing([here, gone], tmp_path) == [gone]
