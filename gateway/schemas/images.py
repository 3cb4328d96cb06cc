"""The URLs that images come by: data URLs (RFC 2397) in base64, and addresses of other servers."""

import re
from dataclasses import dataclass

from handlers.chat.types import ImageInput
from handlers.errors import InvalidRequest

MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif"})
MAX_URL = 2048  # characters of an address

_WAY_OUT = "Send a data URL such as data:image/png;base64,…"
_DATA_URL = re.compile(r"data:([a-zA-Z0-9.+/-]{0,100})((?:;[a-zA-Z0-9=._-]{0,100}){0,4}?)(;base64)?,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RemoteImage(ImageInput):
    """An image that is still to be fetched: its file is empty."""

    url: str


def read_image_url(url: object, param: str) -> ImageInput | RemoteImage:
    """What is in base64 stays so: it is undone where time may be taken. Raises InvalidRequest naming `param`."""
    if url is None:
        raise _refused(param, "is missing", "missing_required_parameter")
    if not isinstance(url, str):
        raise _refused(param, "must be a string", "invalid_type")
    if not url[:5].lower() == "data:":
        if not url or len(url) > MAX_URL:
            raise _refused(param, f"must have 1 to {MAX_URL} characters, but for data URLs")
        return RemoteImage(b"", "", param, url)
    head = _DATA_URL.match(url)
    if head is None or not head[3]:
        raise _refused(param, "is a data URL without ';base64,'")
    media_type = head[1].lower()
    if media_type not in MEDIA_TYPES:
        raise _refused(param, "must be of type image/png, image/jpeg, image/webp or image/gif")
    if head.end() == len(url):
        raise _refused(param, "is an empty image")
    return ImageInput(url[head.end() :], media_type, param)


def _refused(param: str, reason: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"'{param}' {reason}. {_WAY_OUT}", param, code)
