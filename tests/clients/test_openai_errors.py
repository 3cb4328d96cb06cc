"""Every exception class of the openai package, from a real error of a real server around fake models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from batching.errors import DeadlineExceeded, EngineFailed, OutOfMemory, QueueFull, ShuttingDown
from handlers.base import Handler
from tests.clients.live import fake_server
from tests.clients.test_cancellation import LatchedChat, wait_for
from tests.gateway.fakes import FakeChat, FakeEmbeddings, FakeTranscription

HELLO: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


@contextmanager
def connected(*handlers: Handler, api_key: str = "key", max_retries: int = 0, **settings: Any) -> Iterator[OpenAI]:
    with fake_server(handlers, **settings) as url, OpenAI(base_url=url, api_key=api_key, max_retries=max_retries) as c:
        yield c


class RefusesAtFirst(FakeChat):
    """Raises `error` for the first `times` requests and answers then."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self._error = error
        self._times = times

    async def open(self, *args: Any) -> Any:
        self.refusal = self._error if len(self.calls) < self._times else None
        return await super().open(*args)


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"temperature": 3}, "temperature", None),
        ({"n": 129}, "n", "invalid_value"),
        ({"messages": []}, "messages", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_value"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ],
)
def test_bad_parameters_are_bad_requests_that_name_them(wrong: dict[str, Any], param: str, code: str | None) -> None:
    with connected(FakeChat()) as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**{**HELLO, **wrong})
    assert raised.value.param == param
    assert code is None or raised.value.code == code
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id


def test_an_unknown_model_is_not_found() -> None:
    with connected(FakeChat()) as client, pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(**{**HELLO, "model": "gpt-17"})
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_a_wrong_key_is_an_authentication_error() -> None:
    with connected(FakeChat(), api_key="wrong", api_keys=("right",)) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.chat.completions.create(**HELLO)
        assert raised.value.code == "invalid_api_key"
        assert client.with_options(api_key="right").chat.completions.create(**HELLO).choices


def test_too_many_requests_are_a_rate_limit_error() -> None:
    with connected(FakeChat(), rate_limit="2/minute") as client:
        for _ in range(2):
            client.chat.completions.create(**HELLO)
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(**HELLO)
    assert raised.value.code == "rate_limit_exceeded"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull(64, retry_after=3), 503, "server_is_overloaded"),
        (ShuttingDown("bye"), 503, "shutting_down"),
        (OutOfMemory("too big"), 503, "out_of_memory"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
        (EngineFailed("secret cause"), 500, "engine_failed"),
        (RuntimeError("secret cause"), 500, None),
    ],
)
def test_faults_of_the_server_are_internal_server_errors(error: Exception, status: int, code: str | None) -> None:
    with connected(FakeChat(refusal=error)) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(**HELLO)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    assert "secret" not in raised.value.response.text


def test_a_body_over_the_limit_is_a_status_error_413() -> None:
    with connected(FakeChat(), max_body_bytes=1024) as client, pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**{**HELLO, "user": "x" * 2000})
    assert raised.value.status_code == 413


def test_an_upload_over_the_limit_is_a_status_error_413() -> None:
    with connected(FakeTranscription(), max_audio_bytes=1024) as client, pytest.raises(openai.APIStatusError) as raised:
        client.audio.transcriptions.create(model="tiny-whisper", file=("a.wav", b"x" * 3_000_000))
    assert raised.value.status_code == 413


def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    with connected(FakeChat()) as client:
        pass
    with (
        OpenAI(base_url=client.base_url, api_key="key", max_retries=0) as late,
        pytest.raises(openai.APIConnectionError),
    ):
        late.chat.completions.create(**HELLO)


def test_a_client_that_waits_no_longer_gets_its_own_timeout_and_its_work_is_cancelled() -> None:
    chat = LatchedChat()
    with connected(chat) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.1).chat.completions.create(**{**HELLO, "model": "latched"})
        wait_for(lambda: chat.batcher.running == chat.batcher.waiting == 0)
        chat.engine.latch.open()


def test_an_error_in_mid_stream_is_an_api_error_after_the_text_before_it() -> None:
    with connected(FakeChat(wait_at=2, error=EngineFailed("secret cause"))) as client:
        pieces: list[str] = []
        with pytest.raises(openai.APIError) as raised:
            for chunk in client.chat.completions.create(**HELLO, stream=True):
                pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == "Hel"
    assert "secret" not in str(raised.value)


def test_the_sdk_retries_a_full_queue_as_told_and_succeeds() -> None:
    chat = RefusesAtFirst(QueueFull(64, retry_after=1), times=1)
    with connected(chat, max_retries=2) as client:
        reply = client.chat.completions.with_raw_response.create(**HELLO)
    assert reply.retries_taken == 1
    assert len(chat.calls) == 2


def test_the_sdk_does_not_retry_what_is_too_large_for_memory() -> None:
    chat = FakeChat(refusal=OutOfMemory("too big"))
    with connected(chat, max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**HELLO)
    assert len(chat.calls) == 1


def test_ignored_parameters_are_listed_in_a_header() -> None:
    with connected(FakeChat()) as client:
        reply = client.chat.completions.with_raw_response.create(**HELLO, user="u", verbosity="low")
    assert reply.headers["x-ignored-params"] == "user,verbosity"


def test_a_model_id_with_a_slash_is_found() -> None:
    with connected(FakeChat()) as client:
        assert client.models.retrieve("org/chat").id == "org/chat"


def test_a_client_of_a_model_that_is_for_something_else_is_told_so() -> None:
    with connected(FakeChat(), FakeEmbeddings()) as client, pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="gpt-4o-mini", input="x")
    assert raised.value.param == "model"
    assert "mini-embed" in str(raised.value)


def test_requests_ids_are_the_clients_own_where_they_are_sane() -> None:
    with connected(FakeChat()) as client:
        named = client.chat.completions.create(**HELLO, extra_headers={"x-request-id": "my-id.1"})
        unsafe = client.chat.completions.create(**HELLO, extra_headers={"x-request-id": "a b"})
    assert named._request_id == "my-id.1"
    assert unsafe._request_id and unsafe._request_id.startswith("req_")
