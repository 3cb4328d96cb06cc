"""The kinds of value a setting can have, each with the words that say what is allowed."""

import ipaddress
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr

from gateway.mistakes import Allowed
from proxy.addresses import allowed_host
from proxy.routing import Mode

# At most 15 digits: more than any disk holds, and none overflows.
_SIZE = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})? *[A-Za-z]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_API_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+")


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _matches(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError
        return text

    return check


def _check_host(host: str) -> str:
    if not _HOST_NAME.fullmatch(host):
        ipaddress.ip_address(host)
    return host


def _check_size(value: object) -> object:
    """ByteSize itself takes "10 MB or so"."""
    return _matches(_SIZE)(value.strip()) if isinstance(value, str) else value


def _check_positive(size: ByteSize) -> ByteSize:
    if size < 1:
        raise ValueError
    return size


def _check_key(key: SecretStr) -> SecretStr:
    _matches(_API_KEY)(key.get_secret_value())
    return key


def _check_rate(rate: str) -> str:
    # Takes a fifth of a second to import, which most servers need not spend.
    from limits import parse_many

    if not all(limit.amount and limit.get_expiry() for limit in parse_many(rate.strip())):
        raise ValueError
    return rate.strip()


def _check_upstream(url: str) -> str:
    from proxy.target import base_url

    base_url(url)
    return url


def _check_image_host(entry: str) -> str:
    allowed_host(entry)
    return entry


def _check_model_choice(choice: str) -> str:
    if not choice.isprintable():
        raise ValueError
    return choice if choice in ("starter", "none") else str(_expand(Path(choice)))


def _check_folder(path: Path) -> Path:
    folder = _expand(path)
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ValueError
    except FileNotFoundError:
        return folder
    except OSError as exc:
        raise ValueError from exc
    return folder


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as exc:  # "~name" without an account of that name
        raise ValueError from exc


Host = Annotated[str, AfterValidator(_check_host), Allowed("an IP address or a host name")]
Port = Annotated[int, Field(ge=0, le=65_535), Allowed("a port number from 0 (any free one) to 65535")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"],
    BeforeValidator(_lower),
    Allowed("debug, info, warning, error or critical"),
]
MetricsAccess = Annotated[Literal["on", "open", "off"], BeforeValidator(_lower), Allowed("on, open or off")]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lower), Allowed("text or json")]
Switch = Annotated[bool, Allowed("true or false")]
Size = Annotated[
    ByteSize,
    BeforeValidator(_check_size),
    AfterValidator(_check_positive),
    Allowed("a size of at least 1 byte, such as 10MiB or 10485760"),
]
# At most a day, so that no deadline overflows a timer.
Seconds = Annotated[float, Field(gt=0, le=86_400), Allowed("a number of seconds above 0 and up to 86400")]
SecondsOrNone = Annotated[float, Field(ge=0, le=86_400), Allowed("a number of seconds from 0 to 86400")]
ApiKey = Annotated[
    SecretStr, AfterValidator(_check_key), Allowed("a key of printable ASCII without spaces", is_secret=True)
]
ApiKeys = Annotated[
    tuple[ApiKey, ...],
    BeforeValidator(_split),
    Allowed("keys of printable ASCII without spaces, separated by commas", is_secret=True),
]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_matches(_ORIGIN))], ...],
    BeforeValidator(_split),
    Allowed("origins such as https://app.example.com, separated by commas, without a path and never *"),
]
ImageHosts = Annotated[
    tuple[Annotated[str, AfterValidator(_check_image_host)], ...],
    BeforeValidator(_split),
    Allowed("host names such as images.example.com, *.example.com or cdn.example.com:8443, separated by commas"),
]
RateLimit = Annotated[
    str, AfterValidator(_check_rate), Allowed("a rate such as 60/minute, or several separated by semicolons")
]
# Secret, because people put passwords into URLs.
UpstreamUrl = Annotated[
    str,
    AfterValidator(_check_upstream),
    Allowed("an http:// or https:// URL such as https://api.example.com/v1, without user, ? or #", is_secret=True),
]
UpstreamMode = Annotated[Mode, BeforeValidator(_lower), Allowed("off, fallback, overflow, first or only")]
Folder = Annotated[Path, AfterValidator(_check_folder), Allowed("a folder, or the name of a new one")]
ModelChoice = Annotated[
    str, AfterValidator(_check_model_choice), Allowed("starter, none or the path of a TOML file of models")
]
Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$"), Allowed("auto, cpu, mps, cuda or cuda:1")
]
Count = Annotated[int, Field(strict=True, ge=1, le=2**31), Allowed("a whole number of at least 1")]
Amount = Annotated[int, Field(ge=1, le=2**31), Allowed("a whole number of at least 1")]
Threads = Annotated[int, Field(ge=1, le=1024), Allowed("a whole number from 1 to 1024")]
Connections = Annotated[int, Field(ge=1, le=65_535), Allowed("a whole number from 1 to 65535")]
