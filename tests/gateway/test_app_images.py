"""Images from OpenAI's own client to the tokens of a model, through all layers, with a tiny model that sees."""

import base64
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError
from PIL import Image

from gateway.app import create_app
from gateway.settings import Settings
from tests.gateway.test_app import client_of, until_ready
from tests.handlers.tiny import save_chat_model
from tests.handlers.tiny_vision import save_vision_model

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_vision_model(folder / "eye")
    save_chat_model(folder / "blind")
    tables = (
        f'[[models]]\nid = "{id}"\ntask = "chat"\nsource = "dir:{id}"\ndtype = "float32"\n' for id in ("eye", "blind")
    )
    (folder / "models.toml").write_text("".join(tables))
    return folder / "models.toml"


@pytest.fixture
async def client(models: Path) -> AsyncIterator[AsyncOpenAI]:
    settings = Settings(models=str(models), max_images=2, max_image_pixels=10_000, max_image_bytes=4000)
    async with client_of(create_app(settings)) as http:
        await until_ready(http)
        yield AsyncOpenAI(api_key="x", base_url="http://gateway/v1", http_client=http, max_retries=0)


def picture(colour: str, size: tuple[int, int] = (40, 24), kind: str = "PNG") -> str:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def asking(*urls: str) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *images]}]


async def test_an_image_is_answered_whole_and_streamed_and_counted(client: AsyncOpenAI) -> None:
    async def ask(*urls: str) -> Any:
        return await client.chat.completions.create(
            model="eye", messages=asking(*urls), max_tokens=6, temperature=0, logprobs=True
        )

    red, blue, none = await ask(picture("red")), await ask(picture("blue")), await ask()
    again = await ask(picture("red"))
    assert red.usage.prompt_tokens == none.usage.prompt_tokens + 16
    assert red.choices[0].logprobs != blue.choices[0].logprobs
    assert again.choices[0].message == red.choices[0].message
    assert again.usage.prompt_tokens_details.cached_tokens == 16 > blue.usage.prompt_tokens_details.cached_tokens
    stream = await client.chat.completions.create(
        model="eye", messages=asking(picture("red")), max_tokens=6, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == red.choices[0].message.content


async def test_models_say_whether_they_see(client: AsyncOpenAI) -> None:
    entries = {model.id: (model.model_extra or {})["capabilities"] async for model in client.models.list()}
    assert entries == {"eye": ["chat", "completions", "vision"], "blind": ["chat", "completions"]}


REFUSED = (
    ("blind", [picture("red")], 400, 1),
    ("eye", [picture("red")] * 3, 400, 3),
    ("eye", [picture("red"), "https://images.example.com/a.png"], 400, 2),
    ("eye", [picture("red", (100, 101))], 413, 1),
    ("eye", ["data:image/png;base64," + "A" * 8000], 413, 1),
    ("eye", ["data:image/png;base64,AAAA"], 400, 1),
    ("eye", [picture("red").replace("image/png", "image/webp")], 400, 1),
)


async def test_what_is_not_taken_is_refused_by_its_place(client: AsyncOpenAI) -> None:
    for model, urls, status, place in REFUSED:
        with pytest.raises(APIStatusError) as refused:
            await client.chat.completions.create(model=model, messages=asking(*urls))
        error: Any = refused.value.body
        assert (refused.value.status_code, error["param"]) == (
            status,
            f"messages[0].content[{place}].image_url.url",
        )


async def test_the_mark_of_an_image_in_a_text_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="stands for an image in this model"):
        await client.chat.completions.create(model="eye", messages=[{"role": "user", "content": "An <image>."}])


async def test_images_are_fetched_where_the_settings_name_hosts(models: Path) -> None:
    settings = Settings(models=str(models), image_hosts=("images.example.com",))
    async with client_of(create_app(settings)) as http:
        await until_ready(http)
        body = {"model": "eye", "messages": asking("https://elsewhere.example.com/a.png")}
        response = await http.post("/v1/chat/completions", json=body)
        error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_image_url")
    assert "its host is not one that images are fetched from" in error["message"]
