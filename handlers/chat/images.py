"""Images as callers send them: checked before anything is decoded, then upright, opaque and RGB.

The format is told by the file's first bytes, and only that format's reader gets to see it. What a reader says about a
broken file stays here: such texts have held addresses of memory (CVE-2026-22778).
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from handlers.chat.types import ImageInput, ImageLimits
from handlers.errors import InvalidRequest, TooLarge

_MAX_SIDE = 65_535  # of JPEG; no camera or screen comes near it, but headers of a few bytes do


@dataclass(frozen=True, slots=True)
class _Format:
    """reader: Pillow's name of it."""

    reader: str
    media_type: str


_PNG = _Format("PNG", "image/png")
_JPEG = _Format("JPEG", "image/jpeg")
_GIF = _Format("GIF", "image/gif")
_WEBP = _Format("WEBP", "image/webp")
_BEGINNINGS: Mapping[bytes, _Format] = {
    b"\x89PNG\r\n\x1a\n": _PNG,
    b"\xff\xd8\xff": _JPEG,
    b"GIF87a": _GIF,
    b"GIF89a": _GIF,
}
_SAME_AS = {"image/jpg": "image/jpeg"}


def decode_all(images: Sequence[ImageInput], limits: ImageLimits) -> list[Image.Image]:
    """In a worker thread. Raises InvalidRequest naming the image at fault, TooLarge for one over a limit."""
    left = limits.max_pixels
    decoded = []
    for image in images:
        decoded.append(_decode(image, limits, left))
        left -= decoded[-1].width * decoded[-1].height
    return decoded


def _decode(image: ImageInput, limits: ImageLimits, max_pixels: int) -> Image.Image:
    content = _content(image, limits.max_bytes)
    form = _format(content, image)
    try:
        with Image.open(BytesIO(content), formats=[form.reader]) as opened:
            _check_size(opened.size, max_pixels, limits, image.param)
            return _upright_rgb(opened)
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits, image.param) from error
    except Exception as error:  # readers fail with whatever they stumble over
        raise _refused(image, f"is no whole {form.media_type}") from error


def _content(image: ImageInput, max_bytes: int) -> bytes:
    if isinstance(image.data, bytes):
        content = image.data
    else:
        _check_bytes(len(image.data) * 3 // 4 - 2, max_bytes, image)
        try:
            content = binascii.a2b_base64(image.data, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise _refused(image, "holds something that is not base64 with its padding") from error
    _check_bytes(len(content), max_bytes, image)
    return content


def _check_bytes(size: int, max_bytes: int, image: ImageInput) -> None:
    if size > max_bytes:
        message = f"'{image.param}' is an image of more than the {max_bytes} bytes that are taken. Send a smaller one."
        raise TooLarge(message, image.param, "request_too_large")


def _format(content: bytes, image: ImageInput) -> _Format:
    known = (form for beginning, form in _BEGINNINGS.items() if content.startswith(beginning))
    form = _WEBP if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else next(known, None)
    if form is None:
        raise _refused(image, "is not a PNG, JPEG, WebP or GIF file")
    said = _SAME_AS.get(image.media_type, image.media_type)
    if said != form.media_type:
        raise _refused(image, f"says that it is {said}, but is {form.media_type}")
    return form


def _check_size(size: tuple[int, int], max_pixels: int, limits: ImageLimits, param: str) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > _MAX_SIDE:
        raise _too_many_pixels(limits, param)


def _upright_rgb(opened: Image.Image) -> Image.Image:
    """The first frame, turned as the camera was held, on white where it is transparent."""
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off above 255
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    opaque = Image.new("RGBA", upright.size, "white")
    opaque.alpha_composite(upright.convert("RGBA"))
    return opaque.convert("RGB")


def _too_many_pixels(limits: ImageLimits, param: str) -> TooLarge:
    message = (
        f"'{param}' has too many pixels: the images of a request may have {limits.max_pixels} together, "
        f"and {_MAX_SIDE} on a side. Send it smaller."
    )
    return TooLarge(message, param, "request_too_large")


def _refused(image: ImageInput, reason: str) -> InvalidRequest:
    message = f"'{image.param}' {reason}. Send a PNG, JPEG, WebP or GIF file as it is on disk."
    return InvalidRequest(message, image.param, "invalid_value")
