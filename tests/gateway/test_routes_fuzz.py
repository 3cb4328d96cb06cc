"""Whatever a client sends: an answer, or a 4xx in OpenAI's envelope. Never a 5xx."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gateway.schemas import parameters
from gateway.schemas.verdicts import Parameters
from tests.gateway.fakes import FakeChat, FakeEmbeddings, FakeReranker, FakeSpeech, FakeTranscription, app

fuzzed = settings(max_examples=200)

TEXT = st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def fields_of(table: Parameters, **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The likely fields, a few of them replaced or joined by any known name with any value."""
    surprises = st.dictionaries(st.sampled_from(list(table)) | TEXT, JSON, max_size=2)
    return st.builds(lambda base, more: {**base, **more}, st.fixed_dictionaries(likely), surprises)


PART = fields_of(parameters.CONTENT_PART, type=st.sampled_from(["text", "refusal", "image_url", "file"]), text=TEXT)
NAME = st.sampled_from(["f", "g", "", "no name"])
FUNCTION = fields_of(parameters.CHAT, name=NAME, parameters=st.dictionaries(TEXT, JSON, max_size=2))
TOOL = st.fixed_dictionaries({"type": st.sampled_from(["function", "custom"]), "function": FUNCTION | JSON})
CALLED = st.fixed_dictionaries({"name": NAME, "arguments": TEXT})
CALL = st.fixed_dictionaries({"id": TEXT, "type": st.just("function"), "function": CALLED | JSON})
CHOICE = st.sampled_from(["none", "auto", "required"]) | st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": NAME})}
)
ALLOWED = st.fixed_dictionaries({"mode": CHOICE, "tools": st.lists(CHOICE | JSON, max_size=2)})
FORMAT = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={"json_schema": st.fixed_dictionaries({"name": NAME, "schema": JSON}) | JSON},
)
GENERATION: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(st.integers(-1, 9).map(str) | TEXT, st.integers(-101, 101), max_size=2),
    "n": st.integers(0, 2),
    "response_format": FORMAT | JSON,
    "structured_outputs": fields_of(parameters.STRUCTURED_OUTPUTS) | JSON,
    "guided_json": TEXT | JSON,
    "chat_template_kwargs": st.dictionaries(TEXT, JSON, max_size=2),
    "stop_token_ids": st.lists(st.integers(-1, 9), max_size=2),
}
CHATTING: dict[str, st.SearchStrategy[Any]] = GENERATION | {
    "tools": st.lists(TOOL | JSON, max_size=2),
    "tool_choice": CHOICE | st.fixed_dictionaries({"type": st.just("allowed_tools"), "allowed_tools": ALLOWED}) | JSON,
    "functions": st.lists(FUNCTION | JSON, max_size=2),
    "function_call": CHOICE | CALLED | JSON,
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
}
COMPLETING: dict[str, st.SearchStrategy[Any]] = GENERATION | {
    "best_of": st.integers(0, 3),
    "echo": st.booleans(),
    "suffix": TEXT,
    "logprobs": st.integers(-1, 6),
    "max_tokens": st.integers(-1, 3),
}
MESSAGE = fields_of(
    parameters.MESSAGE,
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
    content=TEXT | st.lists(PART | JSON, max_size=3),
)
CALLS = fields_of(parameters.MESSAGE, role=st.just("assistant"), tool_calls=st.lists(CALL | JSON, max_size=2))
CHAT = fields_of(
    parameters.CHAT,
    model=st.just("gpt-4o"),
    messages=st.lists(MESSAGE | CALLS | JSON, max_size=3),
    stream=st.booleans(),
    stream_options=fields_of(parameters.STREAM_OPTIONS),
)
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
INPUT = TEXT | st.lists(TEXT) | st.lists(st.integers()) | st.lists(st.lists(st.integers(0, 9)))
COMPLETION = fields_of(parameters.COMPLETIONS, model=st.just("gpt-4o"), prompt=INPUT, stream=st.booleans())
EMBED = fields_of(parameters.EMBEDDINGS, model=st.just("mini-embed"), input=INPUT)
DOCUMENT = TEXT | st.fixed_dictionaries({"text": TEXT}, optional={"title": JSON, "image": JSON}) | JSON
RERANK = fields_of(
    parameters.RERANK, model=st.just("mini-rerank"), query=TEXT, documents=st.lists(DOCUMENT, max_size=3) | JSON
)
SPEAK = fields_of(parameters.SPEECH, model=st.just("tiny-tts"), input=TEXT, voice=TEXT)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    everything = app(FakeChat(), FakeEmbeddings(), FakeReranker(), FakeTranscription(), FakeSpeech())
    with TestClient(everything) as client:
        yield client


def check(response: httpx2.Response) -> None:
    assert response.status_code < 500
    if response.status_code >= 400:
        body = orjson.loads(response.content)
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)
        assert body["error"]["type"] == "invalid_request_error"
        assert body["error"]["param"] is None or isinstance(body["error"]["param"], str)


@fuzzed
@given(body=CHAT | JSON)
@example(body={"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "stream": True})
def test_chat(client: TestClient, body: object) -> None:
    check(client.post("/v1/chat/completions", json=body))


@fuzzed
@given(fields=st.fixed_dictionaries({}, optional=CHATTING), stream=st.booleans())
def test_chats_with_nearly_right_parameters(client: TestClient, fields: dict[str, object], stream: bool) -> None:
    check(client.post("/v1/chat/completions", json={**HELLO, **fields, "stream": stream}))


@fuzzed
@given(body=COMPLETION | JSON)
def test_completions(client: TestClient, body: object) -> None:
    check(client.post("/v1/completions", json=body))


@fuzzed
@given(fields=st.fixed_dictionaries({"prompt": INPUT}, optional=COMPLETING), stream=st.booleans())
def test_completions_with_nearly_right_parameters(client: TestClient, fields: dict[str, object], stream: bool) -> None:
    check(client.post("/v1/completions", json={"model": "gpt-4o", **fields, "stream": stream}))


@fuzzed
@given(body=EMBED | JSON)
def test_embeddings(client: TestClient, body: object) -> None:
    check(client.post("/v1/embeddings", json=body))


@fuzzed
@given(body=RERANK | JSON)
def test_rerank(client: TestClient, body: object) -> None:
    check(client.post("/v1/rerank", json=body))


@fuzzed
@given(body=SPEAK | JSON)
def test_speech(client: TestClient, body: object) -> None:
    check(client.post("/v1/audio/speech", json=body))


FIELD = st.builds(
    "{}{}".format,
    st.sampled_from(list(parameters.TRANSCRIPTION)) | TEXT,
    st.sampled_from(["", "", "[]", "[type]", "[threshold]", "["]),
)
VALUE = (
    st.sampled_from(["true", "verbose_json", "vtt", "word", "logprobs", "auto", "server_vad", "en", "0.5"])
    | TEXT
    | JSON.map(lambda value: orjson.dumps(value).decode())
)


@fuzzed
@given(
    fields=st.dictionaries(FIELD, st.lists(VALUE, min_size=1, max_size=2), max_size=4),
    model=st.sampled_from(["tiny-whisper", "tiny-whisper", "tiny-whisper", "gpt-4o", ""]),
    audio=st.binary(max_size=8),
    path=st.sampled_from(["transcriptions", "translations"]),
)
def test_transcriptions(client: TestClient, fields: dict[str, list[str]], model: str, audio: bytes, path: str) -> None:
    form = {"model": model, **fields}
    check(client.post(f"/v1/audio/{path}", data=form, files={"file": ("a.wav", audio)}))


FORM_PIECES = (
    b"--x",
    b"--x--",
    b"\r\n",
    b"content-disposition: form-data; ",
    b'name="file"; ',
    b'filename="',
    b'"',
    b":",
)


@fuzzed
@given(
    options=st.sampled_from(["; boundary=x", "", "; boundary", "; boundary=x; charset=utf-8", '; boundary="x']) | TEXT,
    pieces=st.lists(st.sampled_from(FORM_PIECES) | st.binary(max_size=4), max_size=16),
)
def test_forms_in_pieces(client: TestClient, options: str, pieces: list[bytes]) -> None:
    headers = {b"content-type": b"multipart/form-data" + options.encode("utf-8", "replace")}
    check(client.post("/v1/audio/transcriptions", content=b"".join(pieces), headers=headers))


@fuzzed
@given(
    body=st.binary(max_size=64),
    path=st.sampled_from(["chat/completions", "completions", "embeddings", "rerank", "audio/speech"]),
)
def test_bytes(client: TestClient, body: bytes, path: str) -> None:
    check(client.post(f"/v1/{path}", content=body))


@fuzzed
@given(name=st.text(min_size=1, max_size=16))
def test_model_names(client: TestClient, name: str) -> None:
    check(client.get(f"/v1/models/{quote(name, safe='')}"))
