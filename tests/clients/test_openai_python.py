"""The openai package, unmodified, against a real server with the real starter models."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import anyio
import av
import numpy as np
import openai
import pytest
import soundfile
from openai import AsyncOpenAI, OpenAI
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletionMessageParam

from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES
from tests.wer import word_error_rate

pytestmark = pytest.mark.models

CAPITAL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
PANGRAM = "The quick brown fox jumps over the lazy dog. We walked along the river and talked about the weather."
BECKETT = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."


@pytest.fixture(scope="module")
def beckett(models_dir: Path) -> Path:
    return fetch(SPEECH_SAMPLES, models_dir) / "beckett.wav"


def test_a_chat_is_answered(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="gpt-4o-mini", messages=CAPITAL, temperature=0)
    assert completion.model == "gpt-4o-mini"
    assert completion.object == "chat.completion"
    (choice,) = completion.choices
    assert "Paris" in (choice.message.content or "")
    assert (choice.finish_reason, choice.message.role, choice.message.refusal) == ("stop", "assistant", None)
    usage = completion.usage
    assert usage and usage.prompt_tokens > 20 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_same_model_answers_to_its_own_id_and_to_every_alias(client: OpenAI) -> None:
    (chat,) = (model for model in client.models.list() if "chat" in model.capabilities)  # type: ignore[attr-defined]
    for name in (chat.id, *chat.aliases):  # type: ignore[attr-defined]
        completion = client.chat.completions.create(model=name, messages=CAPITAL, max_tokens=1)
        assert completion.model == name


def test_text_parts_and_a_developer_message_are_taken(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": "You are a geography teacher."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}],
            },
        ],
        temperature=0,
    )
    assert "Paris" in (completion.choices[0].message.content or "")


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "gpt-4o-mini", "messages": CAPITAL, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert len(chunks) > 6


def test_the_streaming_helper_reads_it_too(client: OpenAI) -> None:
    with client.chat.completions.stream(model="gpt-4o-mini", messages=CAPITAL, temperature=0) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events and events[-1] == "content.done"
    assert "Paris" in (final.choices[0].message.content or "")


def test_max_tokens_stop_and_seed_do_what_they_say(client: OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="gpt-4o-mini", messages=CAPITAL, **options).choices[0]

    cut = ask(temperature=0, max_completion_tokens=3)
    assert (cut.finish_reason, cut.message.content) == ("length", "The capital of")
    stopped = ask(temperature=0, stop=[" France"])
    assert (stopped.finish_reason, stopped.message.content) == ("stop", "The capital of")
    seeded = [ask(temperature=1.5, seed=7, max_tokens=12).message.content for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert seeded[0] != ask(temperature=1.5, seed=8, max_tokens=12).message.content


@pytest.mark.anyio
async def test_32_concurrent_chats_are_all_answered_correctly(async_client: AsyncOpenAI) -> None:
    capitals = {"France": "Paris", "Germany": "Berlin", "Japan": "Tokyo"}  # what so small a model knows
    wrong: list[str] = []

    async def ask(country: str) -> None:
        completion = await async_client.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
            temperature=0,
            max_tokens=16,
        )
        text = completion.choices[0].message.content or ""
        if capitals[country] not in text:
            wrong.append(text)

    async with async_client, anyio.create_task_group() as asking:
        for i in range(32):
            asking.start_soon(ask, list(capitals)[i % 3])
    assert wrong == []


@pytest.mark.anyio
async def test_64_concurrent_embeddings_equal_those_asked_for_in_one_request(async_client: AsyncOpenAI) -> None:
    texts = [f"Text number {i} {'is about weather ' * (i % 5)}" for i in range(64)]
    together = await async_client.embeddings.create(model="text-embedding-3-small", input=texts)
    alone: dict[int, list[float]] = {}

    async def embed(i: int) -> None:
        reply = await async_client.embeddings.create(model="text-embedding-3-small", input=texts[i])
        alone[i] = reply.data[0].embedding

    async with async_client, anyio.create_task_group() as asking:
        for i in range(64):
            asking.start_soon(embed, i)
    cosines = [float(np.dot(alone[item.index], item.embedding)) for item in together.data]
    assert min(cosines) > 0.999


def test_embeddings_of_like_texts_are_alike(client: OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten is on the rug.", "Stock prices fell sharply."]
    reply = client.embeddings.create(model="text-embedding-3-small", input=texts)
    cat, kitten, stocks = (np.array(item.embedding) for item in reply.data)
    assert cat @ kitten > 0.5 > 0.2 > cat @ stocks
    assert cat.shape == (384,) and np.linalg.norm(cat) == pytest.approx(1, abs=1e-3)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 20


def test_floats_and_base64_are_the_same_vector(client: OpenAI) -> None:
    replies = [
        client.embeddings.create(model="all-minilm-l6-v2", input="hello", encoding_format=encoding)
        for encoding in ("float", "base64")
    ]
    floats, packed = (reply.data[0].embedding for reply in replies)
    assert isinstance(packed, str)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), floats, rtol=1e-6)


def test_what_the_package_asks_for_by_itself_is_read_back_to_the_last_bit(client: OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="all-minilm-l6-v2", input=["hello", "bye"])
    assert json.loads(raw.http_request.content)["encoding_format"] == "base64"
    sent = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in json.loads(raw.content)["data"]]
    read = np.array([item.embedding for item in raw.parse().data], np.float32)
    np.testing.assert_array_equal(read, sent)
    assert read.shape == (2, 384)


def test_the_extensions_go_through_extra_body(client: OpenAI) -> None:
    def embed(text: str, **extensions: Any) -> tuple[Any, int]:
        reply = client.embeddings.create(model="all-minilm-l6-v2", input=text, extra_body=extensions)
        return np.array(reply.data[0].embedding), reply.usage.prompt_tokens

    cut, tokens = embed("word " * 1000, truncate=True)
    fitting, _ = embed("word " * 254)
    assert tokens == 256
    np.testing.assert_allclose(cut, fitting, atol=1e-6)
    raw, _ = embed("hello", normalize=False, input_type="query")
    unit, _ = embed("hello")
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "param", "code"),
    [(["word " * 1000], "input[0]", "context_length_exceeded"), (["a"] * 2049, "input", "invalid_value")],
    ids=["overlong", "too many"],
)
def test_what_cannot_be_embedded_is_refused_by_name(client: OpenAI, texts: list[str], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "text-embedding-ada-002", "input": [[15339, 1917], [29474]], "encoding_format": "base64"},
        {"model": "text-embedding-ada-002", "input": ["hello world", "bye"], "encoding_format": "base64"},
    ],
    ids=["LangChain", "LlamaIndex"],
)
def test_what_other_clients_send_is_understood(client: OpenAI, body: dict[str, Any]) -> None:
    """Recorded from langchain-openai 1.7.3 and llama-index-embeddings-openai 0.7.0; see test_embeddings_clients.py."""
    reply = client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse)
    plain = client.embeddings.create(model="all-minilm-l6-v2", input=["hello world", "bye"])
    for ours, theirs in zip(plain.data, reply.data, strict=True):
        assert isinstance(theirs.embedding, str)
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(theirs.embedding), "<f4"), ours.embedding)
    assert reply.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize(
    ("model", "ids"),
    [("all-minilm-l6-v2", [[7592, 2088], [9061]]), ("text-embedding-3-small", [[15339, 1917], [29474]])],
    ids=["own token ids", "token ids of OpenAI"],
)
def test_all_four_input_forms_are_taken(client: OpenAI, model: str, ids: list[list[int]]) -> None:
    inputs: list[Any] = ["hello world", ["hello world", "bye"], ids[0], ids]
    replies = [client.embeddings.create(model=model, input=form) for form in inputs]
    assert [len(reply.data) for reply in replies] == [1, 2, 1, 2]
    first = [reply.data[0].embedding for reply in replies]
    for vector in first[1:]:
        np.testing.assert_allclose(vector, first[0], atol=1e-4)


def converted(source: Path, container: str, codec: str) -> io.BytesIO:
    """The recording in another container, as a phone or a browser would send it."""
    target = io.BytesIO()
    samples, rate = soundfile.read(source, dtype="int16")
    with av.open(target, "w", format=container) as written:
        stream = written.add_stream(codec, rate=48_000 if codec == "libopus" else rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        written.mux([*stream.encode(frame), *stream.encode(None)])
    target.seek(0)
    return target


def test_recorded_speech_is_transcribed(client: OpenAI, beckett: Path) -> None:
    transcription = client.audio.transcriptions.create(model="whisper-1", file=beckett)
    assert word_error_rate(BECKETT, transcription.text) <= 0.1
    assert transcription.usage and transcription.usage.type == "duration"
    assert transcription.usage.seconds == pytest.approx(10, abs=0.5)


def test_recorded_speech_is_transcribed_as_a_stream(client: OpenAI, beckett: Path) -> None:
    *deltas, done = client.audio.transcriptions.create(model="whisper-1", file=beckett, stream=True)
    assert done.type == "transcript.text.done"
    assert word_error_rate(BECKETT, done.text) <= 0.1
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("speech.mp3", "mp3", "mp3"),
        ("speech.flac", "flac", "flac"),
        ("speech.ogg", "ogg", "libopus"),
        ("speech.m4a", "ipod", "aac"),
        ("speech.webm", "webm", "libopus"),
    ],
)
def test_every_common_format_is_transcribed(
    client: OpenAI, beckett: Path, name: str, container: str, codec: str
) -> None:
    upload = (name, converted(beckett, container, codec))
    text = client.audio.transcriptions.create(model="gpt-4o-mini-transcribe", file=upload, response_format="text")
    assert isinstance(text, str) and text.endswith("\n")
    assert word_error_rate(BECKETT, text) <= 0.1


def test_synthesised_speech_is_understood_by_the_transcriber(client: OpenAI) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=PANGRAM, response_format="wav")
    transcription = client.audio.transcriptions.create(
        model="whisper-1", file=("speech.wav", speech.content), language="en", temperature=0
    )
    assert word_error_rate(PANGRAM, transcription.text) <= 0.1


@pytest.mark.parametrize(
    ("response_format", "media_type"),
    [("wav", "audio/wav"), ("mp3", "audio/mpeg"), ("flac", "audio/flac"), ("opus", "audio/ogg"), ("aac", "audio/aac")],
)
def test_every_speech_format_plays_for_the_same_time(client: OpenAI, response_format: Any, media_type: str) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="nova", input=PANGRAM, response_format=response_format)
    pcm = client.audio.speech.create(model="tts-1", voice="nova", input=PANGRAM, response_format="pcm")
    assert speech.response.headers["content-type"] == media_type
    assert pcm.response.headers["content-type"] == "audio/pcm"
    with av.open(io.BytesIO(speech.content), "r") as decoded:
        seconds = sum(frame.samples / frame.sample_rate for frame in decoded.decode(audio=0))
    assert seconds == pytest.approx(len(pcm.content) / 2 / 24_000, abs=0.1)


@pytest.mark.parametrize("response_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_streamed_speech_is_the_same_as_whole(client: OpenAI, response_format: Any) -> None:
    fields: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "response_format": response_format}
    whole = client.audio.speech.create(input=f"{PANGRAM} {PANGRAM}", **fields).content
    with client.audio.speech.with_streaming_response.create(input=f"{PANGRAM} {PANGRAM}", **fields) as speech:
        pieces = list(speech.iter_bytes())
    assert len(pieces) > 1
    if response_format == "opus":  # each stream has a serial number of its own
        played, expected = (soundfile.read(io.BytesIO(content))[0] for content in (b"".join(pieces), whole))
        np.testing.assert_array_equal(played, expected)
    else:
        assert b"".join(pieces) == whole


def test_speed_makes_speech_shorter_and_longer(client: OpenAI) -> None:
    def seconds(speed: float) -> float:
        speech = client.audio.speech.create(
            model="tts-1", voice="alloy", input=PANGRAM, speed=speed, response_format="wav"
        )
        return float(soundfile.info(io.BytesIO(speech.content)).duration)

    normal = seconds(1.0)
    ratios = [seconds(speed) / normal for speed in (0.25, 0.5, 2.0, 4.0)]
    assert ratios == pytest.approx([4, 2, 0.5, 0.25], rel=0.15)


def test_models_are_listed_and_found_under_every_name(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["smollm2-135m-instruct", "all-minilm-l6-v2", "whisper-tiny.en", "hibari"]
    assert client.models.retrieve("whisper-1").id == "whisper-1"
    assert client.models.retrieve("all-minilm-l6-v2").max_model_len == 256  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/unknown")
    assert missing.value.code == "model_not_found"


@pytest.mark.anyio
async def test_the_async_client_does_all_four(async_client: AsyncOpenAI, beckett: Path) -> None:
    async with async_client:
        stream = await async_client.chat.completions.create(
            model="gpt-4o", messages=CAPITAL, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        embedding = await async_client.embeddings.create(model="text-embedding-ada-002", input="hello")
        transcription = await async_client.audio.transcriptions.create(model="whisper-1", file=beckett)
        async with async_client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice="coral", input="Hello."
        ) as speech:
            audio = b"".join([chunk async for chunk in speech.iter_bytes()])
    assert "Paris" in text
    assert len(embedding.data[0].embedding) == 384
    assert word_error_rate(BECKETT, transcription.text) <= 0.1
    assert soundfile.info(io.BytesIO(audio)).duration > 0.3
