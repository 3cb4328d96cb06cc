"""Where a request goes upstream. Only the part of its path below /v1 is taken from the client."""

import re
from urllib.parse import unquote

import httpx2
from starlette.types import Scope

from proxy.errors import UnsafePath

PREFIX = "/v1"
MAX_LENGTH = 8_192  # characters of path and query; common servers take no more

# Of the decoded path. A percent sign left over would be a second encoding; a segment of dots would climb.
SAFE_SUFFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._:@+~=,-]+)+")
SAFE_QUERY = re.compile(r"[\x21\x22\x24-\x7e]*")  # printable ASCII without "#"


def path_of(scope: Scope) -> str:
    """The request's path as the client encoded it, with its query."""
    raw: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return (raw + b"?" + query if query else raw).decode("latin-1")


def base_url(text: str) -> httpx2.URL:
    """The upstream's address: `https://api.example.com/v1`. Raises ValueError saying what is wrong with it."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as exc:
        raise ValueError(f"{text!r} is not a URL: {exc}") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} must begin with http:// or https:// and a host")
    if url.userinfo:
        raise ValueError("a user name or password has no place in the upstream's URL; give the key on its own")
    if url.query or url.fragment:
        raise ValueError(f"{text!r} must end with its path, such as /v1, without '?' or '#'")
    return url


def join(base: httpx2.URL, path: str) -> httpx2.URL:
    """`base` with what `path` (still percent-encoded, with its query) has below /v1. Raises UnsafePath."""
    encoded, separator, query = path.partition("?")
    suffix = encoded.removeprefix(PREFIX)
    if suffix == encoded or not _is_safe(suffix, query):
        raise UnsafePath("this path cannot be passed on to the upstream; it must lie below /v1 and be plainly written")
    return base.copy_with(raw_path=base.raw_path.rstrip(b"/") + f"{suffix}{separator}{query}".encode("ascii"))


def _is_safe(suffix: str, query: str) -> bool:
    short = len(suffix) + len(query) <= MAX_LENGTH
    return short and bool(SAFE_SUFFIX.fullmatch(unquote(suffix)) and SAFE_QUERY.fullmatch(query))
