"""The ready message says where to connect, what is served, and what to try."""

import shlex

import pytest

from gateway.announce import base_url, is_local, ready_message
from gateway.settings import Settings
from handlers.registry import Model
from handlers.spec import ModelSpec, Task
from tests.gateway.fakes import FakeHandler


def model(name: str, task: Task, *aliases: str, device: str = "auto") -> Model:
    return Model(FakeHandler(ModelSpec(id=name, task=task, source="dir:/x", aliases=aliases, device=device)))


def curl(message: str) -> list[str]:
    """The words of the example, as a shell reads them."""
    return shlex.split(next(line for line in message.splitlines() if line.startswith("  curl ")))


def test_it_names_the_url_and_every_model_with_its_task_device_and_aliases() -> None:
    models = [model("smol", Task.CHAT, "gpt-4o", "gpt-4o-mini", device="cpu"), model("voice", Task.SPEECH)]

    message = ready_message(Settings(port=9000), models)

    assert "http://127.0.0.1:9000/v1 " in message
    assert "  chat    smol   cpu  also gpt-4o, gpt-4o-mini\n  speech  voice\n" in message


@pytest.mark.parametrize(
    ("tasks", "path", "field"),
    [
        ((Task.SPEECH, Task.EMBEDDINGS, Task.CHAT), "chat/completions", "messages"),
        ((Task.SPEECH, Task.EMBEDDINGS), "embeddings", "input"),
        ((Task.TRANSCRIPTION, Task.RERANK, Task.SPEECH), "audio/speech", "voice"),
        ((Task.TRANSCRIPTION, Task.RERANK), "rerank", "documents"),
    ],
)
def test_the_example_is_a_request_to_a_model_that_is_served(tasks: tuple[Task, ...], path: str, field: str) -> None:
    words = curl(ready_message(Settings(), [model(f"{task}-model", task) for task in tasks]))

    assert words[1] == f"http://127.0.0.1:8000/v1/{path}"
    assert field in words[words.index("-d") + 1]
    assert "Authorization" not in " ".join(words)


def test_the_example_uses_an_alias_if_there_is_one() -> None:
    assert '"model": "gpt-4o"' in " ".join(curl(ready_message(Settings(), [model("smol", Task.CHAT, "gpt-4o")])))


def test_with_keys_the_example_sends_one_without_showing_it() -> None:
    message = ready_message(Settings(api_keys=("hush",)), [model("smol", Task.CHAT)])

    assert "Authorization: Bearer $OPENAI_API_KEY" in curl(message)
    assert "hush" not in message


def test_without_models_it_names_the_upstream() -> None:
    message = ready_message(Settings(models="none", upstream_url="https://api.example.com/v1"), [])

    assert "What is not served here goes to https://api.example.com/v1" in message
    assert curl(message) == ["curl", "http://127.0.0.1:8000/v1/models"]


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", (), True), ("0.0.0.0", ("key",), False), ("127.0.0.1", (), False), ("localhost", (), False)],
)
def test_an_open_gateway_without_keys_is_warned_about(host: str, keys: tuple[str, ...], warned: bool) -> None:
    assert ("GATEWAY_API_KEYS" in ready_message(Settings(host=host, api_keys=keys), [])) == warned


@pytest.mark.parametrize(
    ("host", "url", "local"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000/v1", False),
        ("::", "http://[::1]:8000/v1", False),
        ("::1", "http://[::1]:8000/v1", True),
        ("gpu-box", "http://gpu-box:8000/v1", False),
        ("localhost", "http://localhost:8000/v1", True),
    ],
)
def test_the_url_works_from_this_machine(host: str, url: str, local: bool) -> None:
    assert base_url(Settings(host=host)) == url
    assert is_local(host) == local
