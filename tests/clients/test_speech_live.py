"""The openai package, unmodified, receives what the starter voice says while it says it, and has it written down."""

import io
from typing import Any

import pytest
import soundfile
from openai import OpenAI

from handlers.starter import SPEECH
from tests.clients.live import LiveServer
from tests.wer import word_error_rate

pytestmark = pytest.mark.models

SENTENCES = (
    "Water boils at a lower temperature in the mountains.",
    "Please buy fresh bread and some cheese.",
    "The river runs through the valley.",
    "Close the window.",
    "The children built a castle of sand.",
    "Most of the students passed.",
    "Turn left at the bridge.",
    "Thank you for calling.",
)
TEXT = " ".join(SENTENCES)
PCM: dict[str, Any] = {"samplerate": 24_000, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}


def as_file(response_format: str, audio: bytes) -> tuple[str, bytes]:
    """PCM has no head, so it gets that of a WAV."""
    if response_format != "pcm":
        return f"speech.{response_format}", audio
    samples, rate = soundfile.read(io.BytesIO(audio), dtype="int16", **PCM)
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, format="WAV")
    return "speech.wav", wav.getvalue()


@pytest.mark.parametrize("response_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_speech_comes_before_the_last_sentence_is_made_and_is_understood(
    server: LiveServer, client: OpenAI, response_format: Any
) -> None:
    before = server.completed(SPEECH.id)
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT, response_format=response_format
    ) as speech:
        pieces = speech.iter_bytes()
        first = next(pieces)
        sentences_at_first = server.completed(SPEECH.id) - before
        rest = b"".join(pieces)
    assert first and 1 <= sentences_at_first < len(SENTENCES) == server.completed(SPEECH.id) - before
    file = as_file(response_format, first + rest)
    heard = client.audio.transcriptions.create(model="whisper-1", file=file, temperature=0)
    assert word_error_rate(TEXT, heard.text) <= 0.1
