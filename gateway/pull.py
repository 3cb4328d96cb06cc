"""Fetch models ahead of their use, with a bar for each on a terminal and a line for each elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from gateway.settings import Settings
from handlers.chat.gguf import needs_conversion, prepare
from handlers.sources import fetch, is_cached, parse
from handlers.spec import ModelSpec, Task


def missing(specs: Iterable[ModelSpec], models_dir: Path) -> list[ModelSpec]:
    """The models that cannot be loaded without fetching them first."""
    return [spec for spec in specs if not all(is_cached(source, models_dir) for source in spec.sources)]


def pull(specs: Sequence[ModelSpec], settings: Settings, console: Console) -> None:
    """Fetch the weights and convert those that would otherwise be converted at the first start.

    Raises SourceError or ModelLoadError.
    """
    folders = fetch_all({spec.id: spec.source for spec in specs}, settings, console)
    fetch_all({f"{spec.id} tokens": spec.openai_tokens for spec in specs if spec.openai_tokens}, settings, console)
    for spec in specs:
        _prepare(spec, folders[spec.id], console)


def fetch_all(sources: Mapping[str, str], settings: Settings, console: Console) -> dict[str, Path]:
    """The local folder of each source, by the name it is shown under. Raises SourceError at the first that fails."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    folders = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for name, source in sources.items():
            if not console.is_terminal and not is_cached(source, settings.models_dir):
                _say(console, f"{name}: fetching {parse(source)}")
            bar = bars.add_task(name, total=None)
            show = partial(_show, bars, bar, name)
            folders[name] = fetch(source, settings.models_dir, progress=show, offline=settings.offline)
            bars.remove_task(bar)
            _say(console, f"{name}: is here")
    return folders


def _show(bars: Progress, bar: TaskID, name: str, step: str, done: int, total: int | None) -> None:
    bars.update(bar, description=f"{name}: {step}", completed=done, total=total)


def _prepare(spec: ModelSpec, folder: Path, console: Console) -> None:
    if spec.task is Task.CHAT and needs_conversion(folder):
        _say(console, f"{spec.id}: converting to safetensors, which happens once")
        prepare(folder)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
