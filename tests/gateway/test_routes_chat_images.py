"""Chats with images through the real route: what reaches the model, and what is fetched, or is not."""

import asyncio
from typing import Any

import httpx2
import pytest

from handlers.chat.types import ImageInput
from tests.gateway.fakes import Connection, FakeChat, app
from tests.proxy.test_images import PNG, PUBLIC, URL, Network, fetcher, reply

pytestmark = pytest.mark.anyio

DATA = "data:image/png;base64,iVBORw0KGgo="
PARAM = "messages[0].content[1].image_url.url"


def chat(*urls: str, **fields: Any) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [{"type": "text", "text": "![a](https://images.example.com/b.png)"}, *images]
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": content}], **fields}


async def post(handler: FakeChat, body: object, network: Network | None = None) -> httpx2.Response:
    asgi = app(handler, images=None if network is None else fetcher(network))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=asgi), base_url="http://gateway") as client:
        return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_data_url_reaches_the_model_as_it_is(stream: bool) -> None:
    handler = FakeChat(reads_images=True)
    assert (await post(handler, chat(DATA, stream=stream))).status_code == 200
    [(request, _)] = handler.calls
    assert request.images == [ImageInput("iVBORw0KGgo=", "image/png", PARAM)]


async def test_a_model_that_reads_text_only_says_so_before_anything_is_fetched() -> None:
    network = Network()
    for url in (DATA, URL):
        response = await post(FakeChat(), chat(url), network)
        assert (response.status_code, response.json()["error"]["param"]) == (400, PARAM)
    assert network.looked_up == []


async def test_addresses_are_not_fetched_unless_the_settings_say_so() -> None:
    response = await post(FakeChat(reads_images=True), chat(URL))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, PARAM)
    assert "does not fetch images" in error["message"] and "data:image/png;base64" in error["message"]


async def test_an_image_is_fetched_and_takes_its_place() -> None:
    handler, network = FakeChat(reads_images=True), Network(reply())
    assert (await post(handler, chat(DATA, URL), network)).status_code == 200
    [(request, _)] = handler.calls
    assert request.images[1] == ImageInput(PNG, "image/png", "messages[0].content[2].image_url.url")
    assert request.images[0].data == "iVBORw0KGgo="


async def test_an_address_in_a_text_causes_no_connection() -> None:
    network = Network()
    assert (await post(FakeChat(reads_images=True), chat(), network)).status_code == 200
    assert (network.looked_up, network.connected) == ([], [])


@pytest.mark.parametrize(
    ("network", "url", "status"),
    [
        (Network(), "https://169.254.169.254/", 400),
        (Network(answers=[["127.0.0.1"]]), URL, 400),
        (Network(reply(status=500)), URL, 400),
        (Network(reply(b"x" * 1001)), URL, 413),
    ],
)
async def test_an_image_that_cannot_be_fetched_is_named(network: Network, url: str, status: int) -> None:
    response = await post(FakeChat(reads_images=True), chat(DATA, url), network)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, "messages[0].content[2].image_url.url")
    assert PUBLIC not in error["message"] and "127.0.0.1" not in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_fetching(stream: bool) -> None:
    handler, network = FakeChat(reads_images=True), Network(reply())
    network.stalls = True
    connection = Connection("/v1/chat/completions", chat(URL, stream=stream))
    await connection.leave_when(network.stalled, app(handler, images=fetcher(network)))
    assert handler.calls == []


async def test_a_deadline_ends_the_fetching() -> None:
    network = Network(reply())
    network.stalls = True
    connection = Connection("/v1/chat/completions", chat(URL))
    connection.scope["gateway.reply_deadline"] = asyncio.get_running_loop().time() - 1
    await app(FakeChat(reads_images=True), images=fetcher(network))(
        connection.scope, connection.receive, connection.send
    )
    assert connection.status == 504
    assert b"deadline_exceeded" in connection.content
