"""POST /v1/audio/speech: what is taken, and the events of a stream."""

from base64 import b64encode
from typing import Annotated, Literal, Self

import orjson
from pydantic import BeforeValidator, Field

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.parameters import SPEECH
from gateway.sse import frame
from handlers.base import Synthesis
from handlers.speech.types import SpeechRequest


def _voice_name(voice: object) -> object:
    return voice["id"] if isinstance(voice, dict) and voice.keys() == {"id"} else voice


class SpeechParams(Wire):
    """How long `input` may be is the model's to say."""

    model: ModelName
    input: Annotated[str, Field(min_length=1)]
    voice: Annotated[str, Field(min_length=1, max_length=256), BeforeValidator(_voice_name)]
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        return cls.read(screen.sort(read_object(body), SPEECH))

    def to_request(self) -> SpeechRequest:
        return SpeechRequest(text=self.input, voice=self.voice, format=self.response_format, speed=self.speed)


def delta_event(audio: bytes) -> bytes:
    return frame(orjson.dumps({"type": "speech.audio.delta", "audio": b64encode(audio).decode()}))


def done_event(synthesis: Synthesis) -> bytes:
    usage = {
        "input_tokens": synthesis.input_tokens,
        "output_tokens": synthesis.output_tokens,
        "total_tokens": synthesis.input_tokens + synthesis.output_tokens,
    }
    return frame(orjson.dumps({"type": "speech.audio.done", "usage": usage}))
