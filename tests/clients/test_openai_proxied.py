"""The openai package in front of a gateway, of one that passes everything on to it, and of one before that."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from batching.errors import EngineFailed, QueueFull
from tests.clients.live import fake_server
from tests.gateway.fakes import FakeChat, FakeEmbeddings, FakeReranker, FakeSpeech, FakeTranscription

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
WAV = ("a.wav", b"RIFF" + bytes(2000), "audio/wav")
# What differs between two answers of the same server.
CHANGES = re.compile(r"""(['\"]?\b(?:id|created)['\"]?[=:] ?)(\"[^\"]*\"|'[^']*'|\d+)""")

Call = Callable[[OpenAI], object]

CALLS: dict[str, Call] = {
    "chat": lambda c: c.chat.completions.create(model="gpt-4o", messages=MESSAGES),
    "chat stream": lambda c: list(c.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)),
    "chat with usage": lambda c: list(
        c.chat.completions.create(
            model="gpt-4o", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    ),
    "completion": lambda c: c.completions.create(model="gpt-4o", prompt="Hello"),
    "completion stream": lambda c: list(c.completions.create(model="gpt-4o", prompt="Hello", stream=True)),
    "embeddings": lambda c: c.embeddings.create(model="mini-embed", input=["a", "bcd"]),
    "embeddings as floats": lambda c: c.embeddings.create(model="mini-embed", input="a", encoding_format="float"),
    "transcription": lambda c: c.audio.transcriptions.create(model="tiny-whisper", file=WAV),
    "transcription as text": lambda c: c.audio.transcriptions.create(
        model="tiny-whisper", file=WAV, response_format="text"
    ),
    "speech": lambda c: c.audio.speech.create(model="tiny-tts", voice="alloy", input="Hello").read(),
    "rerank": lambda c: c.post(
        "/rerank", cast_to=object, body={"model": "mini-rerank", "query": "q", "documents": ["a", "bcd"]}
    ),
    "models": lambda c: c.models.list().data,
    "model": lambda c: c.models.retrieve("gpt-4o"),
    "voices": lambda c: c.get("/audio/voices", cast_to=object),
    "unknown model": lambda c: c.chat.completions.create(model="none", messages=MESSAGES),
    "unknown url": lambda c: c.files.list(),
    "wrong parameter": lambda c: c.chat.completions.create(model="gpt-4o", messages=MESSAGES, temperature=99),
    "no file": lambda c: c.audio.transcriptions.create(model="tiny-whisper", file=("a.wav", b"")),
    "full": lambda c: c.chat.completions.create(model="full", messages=MESSAGES),
    "full stream": lambda c: c.chat.completions.create(model="full", messages=MESSAGES, stream=True),
    "failing stream": lambda c: list(c.chat.completions.create(model="failing", messages=MESSAGES, stream=True)),
}


def named(name: str, chat: FakeChat) -> FakeChat:
    chat.spec = type(chat.spec)(name, chat.spec.task, chat.spec.source)
    return chat


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    handlers = [
        FakeChat(),
        named("full", FakeChat(refusal=QueueFull(4, "requests", retry_after=200.0))),
        named("failing", FakeChat(wait_at=2, error=EngineFailed("broken"))),
        FakeEmbeddings(),
        FakeReranker(),
        FakeTranscription(),
        FakeSpeech(),
    ]
    with fake_server(handlers) as direct:
        with fake_server([], upstream_url=direct, upstream_mode="only") as proxied:
            with fake_server([], upstream_url=proxied, upstream_mode="only") as twice:
                yield {"direct": direct, "proxied": proxied, "twice": twice}


def seen(url: str, call: Call) -> str:
    """What the SDK gives, or raises, but for what is never twice the same."""
    with OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        try:
            result: object = call(client)
        except openai.APIStatusError as exc:
            headers = [exc.response.headers.get(name) for name in ("content-type", "retry-after", "x-should-retry")]
            result = (type(exc), exc.status_code, exc.code, exc.param, str(exc), headers)
        except openai.APIError as exc:
            result = (type(exc), exc.code, exc.param, str(exc))
    return CHANGES.sub(r"\1…", repr(result))


@pytest.mark.parametrize("way", ["proxied", "twice"])
@pytest.mark.parametrize("name", CALLS)
def test_no_client_can_tell_that_an_answer_came_from_further_away(name: str, way: str, urls: dict[str, str]) -> None:
    assert seen(urls[way], CALLS[name]) == seen(urls["direct"], CALLS[name])


def test_an_id_of_the_further_server_is_at_hand_beside_our_own(urls: dict[str, str]) -> None:
    with OpenAI(base_url=urls["proxied"], api_key="unused", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=MESSAGES)

    assert raw.headers["x-request-id"] != raw.headers["x-upstream-request-id"]
    assert (raw.headers["x-served-by"], raw.headers["x-served-because"]) == ("upstream", "mode")
