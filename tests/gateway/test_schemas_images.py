"""Images in the messages of a chat, as they stand on the wire."""

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.schemas.common import Screen
from gateway.schemas.images import MEDIA_TYPES, RemoteImage
from handlers.chat.types import ImageInput
from handlers.errors import InvalidRequest
from tests.gateway.parsing import parse_chat, refusal_of_chat

DATA = "data:image/png;base64,iVBORw0KGgo="
PARAM = "messages[0].content[1].image_url.url"


def message(image: object, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]}


def image_url(url: object, **fields: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def test_a_content_with_an_image_keeps_its_order() -> None:
    request = parse_chat(messages=[{"role": "user", "content": "first"}, message(image_url(DATA))])
    image = ImageInput("iVBORw0KGgo=", "image/png", "messages[1].content[1].image_url.url")
    assert request.messages == [
        {"role": "user", "content": "first"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "image": image},
                {"type": "text", "text": "b"},
            ],
        },
    ]
    assert request.images == [image]


def test_the_url_alone_is_taken_too() -> None:
    [image] = parse_chat(messages=[message({"type": "image_url", "image_url": DATA})]).images
    assert image == ImageInput("iVBORw0KGgo=", "image/png", "messages[0].content[1].image_url")


@pytest.mark.parametrize("detail", ["auto", "low", "high", "original"])
def test_the_detail_is_ignored_and_reported(detail: str) -> None:
    screen = Screen()
    parse_chat(screen, messages=[message(image_url(DATA, detail=detail))])
    assert screen.headers() == {"x-ignored-params": "messages[].content[].image_url.detail"}


def test_an_address_is_left_to_be_fetched() -> None:
    [image] = parse_chat(messages=[message(image_url("https://example.com/a.png"))]).images
    assert image == RemoteImage(b"", "", PARAM, "https://example.com/a.png")


def test_an_address_in_a_text_is_only_text() -> None:
    text = "![cat](https://example.com/a.png) <img src='https://example.com/b.png'> data:image/png;base64,AAAA"
    assert parse_chat(messages=[{"role": "user", "content": [{"type": "text", "text": text}]}]).images == []


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_only_users_send_images(role: str) -> None:
    refused = refusal_of_chat(messages=[{**message(image_url(DATA), role), "tool_call_id": "x"}])
    assert refused.param == "messages[0].content[1]"


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        ["data:"],
        "data:",
        "data:,",
        "data:image/png,AAAA",
        "data:image/png;base64,",
        "data:image/png;base64",
        "data:;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png;charset=x;charset=y;charset=z;charset=a;charset=b;base64,AAAA",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_what_is_no_image_is_refused_by_its_place(url: object) -> None:
    refused = refusal_of_chat(messages=[message(image_url(url))])
    assert refused.param == PARAM
    assert "data:image/png;base64,…" in refused.message


@pytest.mark.parametrize("part", [{"type": "image_url"}, {"type": "image_url", "image_url": None}])
def test_a_part_without_its_image_is_refused(part: dict[str, Any]) -> None:
    refused = refusal_of_chat(messages=[message(part)])
    assert (refused.param, refused.code) == ("messages[0].content[1].image_url", "missing_required_parameter")


@pytest.mark.parametrize("kind", ["input_audio", "file"])
def test_other_media_beside_an_image_are_refused(kind: str) -> None:
    content = [image_url(DATA), {"type": kind, kind: {}}]
    assert refusal_of_chat(messages=[{"role": "user", "content": content}]).param == "messages[0].content[1]"


@given(st.sampled_from(sorted(MEDIA_TYPES)), st.binary(min_size=1, max_size=64), st.booleans())
def test_every_file_comes_out_of_its_data_url_as_it_went_in(kind: str, content: bytes, upper: bool) -> None:
    head = f"data:{kind};base64,"
    url = (head.upper() if upper else head) + base64.b64encode(content).decode()
    [image] = parse_chat(messages=[message(image_url(url))]).images
    assert image.media_type == kind
    assert base64.b64decode(image.data) == content


@given(st.text(max_size=60))
def test_no_data_url_raises_anything_but_a_refusal_by_its_place(rest: str) -> None:
    rest = re.sub("[\ud800-\udfff]", "", rest)
    try:
        parse_chat(messages=[message(image_url(f"data:{rest}"))])
    except InvalidRequest as refused:
        assert refused.param == PARAM
