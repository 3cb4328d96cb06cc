"""Image files of every kind, whole, broken and hostile."""

import base64
import re
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers.chat.images import decode_all
from handlers.chat.types import ImageInput, ImageLimits
from handlers.errors import InvalidRequest, TooLarge

PARAM = "messages[0].content[1].image_url.url"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(content: bytes | str, media_type: str = "image/png", limits: ImageLimits | None = None) -> Image.Image:
    [image] = decode_all([ImageInput(content, media_type, PARAM)], limits or ImageLimits())
    return image


def refusal(content: bytes | str, media_type: str = "image/png", limits: ImageLimits | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        decode(content, media_type, limits)
    assert refused.value.param == PARAM
    assert not re.search(r"0x|/|PIL|Traceback", refused.value.message.replace("image/", "")), refused.value.message
    return refused.value


def png_header(width: int, height: int, kind: bytes = b"IHDR") -> bytes:
    """A PNG that says how large it is, and has nothing to show for it."""
    head = kind + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(9))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, data)
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("encoded", [True, False], ids=["base64", "bytes"])
def test_an_image_of_each_kind_is_read(kind: str, encoded: bool) -> None:
    content = file_of(Image.new("RGB", (32, 16), RED), kind)
    image = decode(base64.b64encode(content).decode() if encoded else content, f"image/{kind.lower()}")
    assert (image.mode, image.size) == ("RGB", (32, 16))
    assert all(abs(a - b) < 4 for a, b in zip(image.getpixel((5, 5)), RED, strict=True))  # type: ignore[arg-type]


def test_image_jpg_is_another_name_of_image_jpeg() -> None:
    assert decode(file_of(Image.new("RGB", (8, 8)), "JPEG"), "image/jpg").size == (8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "1"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    if mode == "P":
        content = file_of(clear.quantize(4), "PNG")
    elif mode == "1":
        content = file_of(Image.new("1", (4, 4), 0), "PNG", transparency=0)
    else:
        content = file_of(clear if mode == "RGBA" else clear.convert("LA"), "PNG")
    image = decode(content)
    assert image.getpixel((3, 3)) == WHITE
    if mode in ("RGBA", "P"):
        assert image.getpixel((0, 0)) == BLUE


def test_cmyk_becomes_rgb() -> None:
    image = decode(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "image/jpeg")
    red, green, blue = image.getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 and green < 60 and blue < 60


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off() -> None:
    image = decode(file_of(Image.new("I;16", (4, 4), 32768), "PNG"))
    assert image.getpixel((0, 0)) == (128, 128, 128)


def test_an_image_is_turned_as_the_camera_was_held() -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left side is the upper one
    turned = decode(file_of(image, "PNG", exif=exif))
    assert turned.size == (20, 40)
    assert (turned.getpixel((10, 5)), turned.getpixel((10, 35))) == (BLUE, RED)


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content, "image/gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_of_many_pixels_is_refused_before_anything_is_decoded(size: tuple[int, int]) -> None:
    assert isinstance(refusal(png_header(*size)), TooLarge)


def test_the_images_of_a_request_share_their_pixels() -> None:
    limits = ImageLimits(max_pixels=150)
    content = file_of(Image.new("RGB", (10, 10)), "PNG")
    images = [ImageInput(content, "image/png", f"messages[{i}]") for i in range(2)]
    assert len(decode_all(images[:1], limits)) == 1
    with pytest.raises(TooLarge) as refused:
        decode_all(images, limits)
    assert refused.value.param == "messages[1]"


@pytest.mark.parametrize("encoded", [True, False], ids=["base64", "bytes"])
def test_a_file_of_too_many_bytes_is_refused(encoded: bool) -> None:
    content = file_of(Image.effect_noise((64, 64), 50), "PNG")
    given = base64.b64encode(content).decode() if encoded else content
    assert decode(given, limits=ImageLimits(max_bytes=len(content))).size == (64, 64)
    assert isinstance(refusal(given, limits=ImageLimits(max_bytes=len(content) - 1)), TooLarge)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"II*\x00",
        b"BM" + bytes(60),
        b"RIFF\x00\x00\x00\x00WAVE",
        b"GIF89a",
        png_header(10, 10),
        png_header(0, 10),
        png_header(10, 10, b"XXXX"),
    ],
)
def test_what_is_no_image_of_a_known_kind_is_refused(content: bytes) -> None:
    assert refusal(content).code == "invalid_value"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_half_a_file_is_refused(kind: str) -> None:
    content = file_of(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    refusal(content[: len(content) // 2], f"image/{kind.lower()}")


def test_a_type_that_is_not_the_files_is_refused() -> None:
    message = refusal(file_of(Image.new("RGB", (4, 4)), "GIF"), "image/png").message
    assert "says that it is image/png, but is image/gif" in message


@pytest.mark.parametrize("text", ["@@@@", "AAA", "AA==AA==", "AAAA\n", "AAAA AAAA", "é", "====", "_-__"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    assert "base64" in refusal(text).message


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF    WEBP"])
)
def test_no_bytes_get_past_a_refusal(content: bytes, beginning: bytes) -> None:
    refusal(beginning + content, "image/png")
