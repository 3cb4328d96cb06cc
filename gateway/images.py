"""Images that are named by their address are fetched before a chat is admitted, where the settings allow it."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from batching.errors import DeadlineExceeded
from gateway.schemas.images import RemoteImage
from handlers.chat.types import ChatRequest, ImageInput
from handlers.errors import InvalidRequest, TooLarge
from proxy.images import ImageFetcher, ImageRefused, ImageTooLarge


async def with_images(chat: ChatRequest, fetcher: ImageFetcher | None, deadline: float | None) -> ChatRequest:
    """The chat with every RemoteImage replaced by what it names, one after the other.

    deadline: on the event loop's clock. Raises InvalidRequest naming the image at fault, or DeadlineExceeded.
    """
    remote = [image for image in chat.images if isinstance(image, RemoteImage)]
    if not remote:
        return chat
    if fetcher is None:
        message = (
            f"'{remote[0].param}' is the address of an image, but this server does not fetch images. "
            "Send a data URL such as data:image/png;base64,…"
        )
        raise InvalidRequest(message, remote[0].param, "unsupported_value")
    try:
        async with asyncio.timeout_at(deadline):
            files = await fetcher.fetch([image.url for image in remote])
    except TimeoutError as error:
        raise DeadlineExceeded from error
    except ImageRefused as error:
        raise _refusal(error, remote[error.index].param) from error
    fetched: dict[ImageInput, ImageInput] = {}
    for image, (media_type, data) in zip(remote, files, strict=True):
        fetched[image] = ImageInput(data, media_type, image.param)
    return replace(chat, messages=[_filled(message, fetched) for message in chat.messages])


def _refusal(error: ImageRefused, param: str) -> InvalidRequest:
    message = f"The image '{param}' is not taken: {error}. A data URL can hold it instead."
    if isinstance(error, ImageTooLarge):
        return TooLarge(message, param, "request_too_large")
    return InvalidRequest(message, param, "invalid_image_url")


def _filled(message: Mapping[str, Any], fetched: Mapping[ImageInput, ImageInput]) -> Mapping[str, Any]:
    if not isinstance(content := message.get("content"), list):
        return message
    return {**message, "content": [_filled_part(part, fetched) for part in content]}


def _filled_part(part: Mapping[str, Any], fetched: Mapping[ImageInput, ImageInput]) -> Mapping[str, Any]:
    image = part.get("image")
    return {**part, "image": fetched[image]} if isinstance(image, RemoteImage) else part
