"""The openai package, unmodified, transcribes and translates in every format: a real server around a fake model."""

from collections.abc import Iterator
from typing import Literal, get_args

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import TranslationVerbose

from tests.clients.live import fake_server
from tests.gateway.fakes import FakeTranscription

AUDIO = ("a.wav", b"RIFF")
TEXT = "And so, my fellow Americans, ask not what your country can do for you."
SRT = (
    "1\n00:00:00,000 --> 00:00:03,300\nAnd so, my fellow Americans,\n\n"
    "2\n00:00:03,300 --> 00:00:11,000\nask not what your country can do for you.\n\n"
)
VTT = "WEBVTT\n\n" + SRT.replace("1\n", "", 1).replace("\n2\n", "\n").replace(",300", ".300").replace(",000", ".000")

# The package calls `translations.create` deprecated, with no word on what is to take its place.
translates = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

Subtitles = Literal["srt", "vtt", "text"]
PLAIN = {"srt": SRT, "vtt": VTT, "text": f"{TEXT}\n"}


@pytest.fixture(scope="module")
def handler() -> FakeTranscription:
    return FakeTranscription()


@pytest.fixture(scope="module")
def base_url(handler: FakeTranscription) -> Iterator[str]:
    with fake_server([handler]) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


def test_a_plain_transcription(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="tiny-whisper", file=AUDIO)
    assert heard.text == TEXT
    assert heard.usage and heard.usage.type == "duration" and heard.usage.seconds == 11


def test_log_probabilities_and_usage_in_tokens(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO, include=["logprobs"])
    assert heard.logprobs and len(heard.logprobs) == 14
    assert heard.logprobs[0].token == " And" and heard.logprobs[0].bytes == list(b" And")
    assert heard.usage and heard.usage.type == "tokens" and heard.usage.total_tokens == 572
    assert heard.usage.input_token_details and heard.usage.input_token_details.audio_tokens == 550


def test_a_verbose_transcription_with_words(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(
        model="tiny-whisper",
        file=AUDIO,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (heard.text, heard.language, heard.duration) == (TEXT, "english", 11)
    assert heard.words and (heard.words[0].word, heard.words[0].start) == ("And", 0)
    assert heard.segments and [segment.start for segment in heard.segments] == [0, 3.3]
    assert heard.usage and heard.usage.seconds == 11


@pytest.mark.parametrize("response_format", get_args(Subtitles))
def test_text_and_subtitles(client: OpenAI, response_format: Subtitles) -> None:
    heard: str = client.audio.transcriptions.create(model="tiny-whisper", file=AUDIO, response_format=response_format)
    assert heard == PLAIN[response_format]


def test_a_stream(client: OpenAI) -> None:
    stream = client.audio.transcriptions.create(
        model="tiny-whisper", file=AUDIO, response_format="text", stream=True, include=["logprobs"]
    )
    *deltas, done = stream
    assert done.type == "transcript.text.done" and done.text == TEXT
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == TEXT
    assert done.logprobs and len(done.logprobs) == 14
    assert done.usage and done.usage.output_tokens == 19


@pytest.mark.anyio
async def test_a_stream_of_the_async_client(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        stream = await client.audio.transcriptions.create(model="tiny-whisper", file=AUDIO, stream=True)
        types = [event.type async for event in stream]
    assert types == ["transcript.text.delta", "transcript.text.delta", "transcript.text.done"]


def test_every_setting_as_the_client_writes_it(client: OpenAI, handler: FakeTranscription) -> None:
    client.audio.transcriptions.create(
        model="tiny-whisper",
        file=AUDIO,
        chunking_strategy={"type": "server_vad", "threshold": 0.25, "prefix_padding_ms": 20, "silence_duration_ms": 0},
        include=["logprobs"],
        keywords=["Ada", "Grace, too"],
        languages=["en", "de"],
        prompt="Earlier",
        stream=False,
        temperature=0.5,
        timestamp_granularities=["segment"],
    )
    request, _ = handler.calls[-1]
    activity = request.voice_activity
    assert (activity.threshold, activity.prefix_padding_ms, activity.silence_duration_ms) == (0.25, 20, 0)
    assert (request.keywords, request.languages) == (("Ada", "Grace, too"), ("en", "de"))
    assert (request.prompt, request.temperature, request.logprobs) == ("Earlier", 0.5, True)
    assert not request.word_timestamps


@translates
def test_a_plain_translation(client: OpenAI, handler: FakeTranscription) -> None:
    assert client.audio.translations.create(model="tiny-whisper", file=AUDIO, prompt="Names").text == TEXT
    request, _ = handler.calls[-1]
    assert (request.task, request.prompt) == ("translate", "Names")


@translates
def test_a_verbose_translation(client: OpenAI) -> None:
    heard = client.audio.translations.create(model="tiny-whisper", file=AUDIO, response_format="verbose_json")
    assert isinstance(heard, TranslationVerbose)
    assert (heard.language, heard.duration, heard.text) == ("english", 11, TEXT)
    assert heard.segments and len(heard.segments) == 2


@translates
@pytest.mark.parametrize("response_format", get_args(Subtitles))
def test_a_translation_as_text_and_subtitles(client: OpenAI, response_format: Subtitles) -> None:
    heard: str = client.audio.translations.create(model="tiny-whisper", file=AUDIO, response_format=response_format)
    assert heard == PLAIN[response_format]


def test_what_does_not_fit_together_is_refused_with_the_name_of_its_field(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model="tiny-whisper", file=AUDIO, timestamp_granularities=["word"])
    assert caught.value.param == "timestamp_granularities"


@translates
def test_a_model_that_cannot_translate_is_refused() -> None:
    with (
        fake_server([FakeTranscription(translates=False)]) as url,
        OpenAI(base_url=url, api_key="unused") as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.audio.translations.create(model="tiny-whisper", file=AUDIO)
    assert caught.value.param == "model"
