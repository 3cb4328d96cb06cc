"""Files that are on this machine already: a folder, or the data of an installed package."""

import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import ClassVar, Self

from handlers.errors import SourceError
from handlers.sources.base import Progress


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """`dir:/path/to/folder`"""

    is_remote: ClassVar[bool] = False

    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        if not text:
            raise SourceError("dir: names no folder; write dir:/path/to/folder")
        return cls(Path(text).expanduser())

    def __str__(self) -> str:
        return f"dir:{self.path}"

    def cached(self, cache_dir: Path) -> Path | None:
        return self.path if self.path.is_dir() else None

    def fetch(self, cache_dir: Path, progress: Progress, offline: bool) -> Path:
        if (folder := self.cached(cache_dir)) is None:
            why = "is a file" if self.path.exists() else "does not exist"
            raise SourceError(f"{self}: {why}; name the folder that holds the model's files")
        return folder


@dataclass(frozen=True, slots=True)
class PackageSource:
    """`package:name`: a distribution that carries its own model; its import folder is what `fetch` returns."""

    is_remote: ClassVar[bool] = False

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        if not text:
            raise SourceError("package: names no package; write package:name-of-an-installed-package")
        return cls(text)

    def __str__(self) -> str:
        return f"package:{self.name}"

    def cached(self, cache_dir: Path) -> Path | None:
        try:
            return _import_folder(distribution(self.name))
        except PackageNotFoundError:
            return None

    def fetch(self, cache_dir: Path, progress: Progress, offline: bool) -> Path:
        if (folder := self.cached(cache_dir)) is None:
            raise SourceError(f"{self}: not installed; run: {sys.executable} -m pip install {self.name}")
        return folder


def _import_folder(package: Distribution) -> Path | None:
    for file in package.files or ():
        if file.name == "__init__.py" and len(file.parts) == 2 and not file.parts[0].startswith("_"):
            return Path(str(package.locate_file(file))).parent
    return None
