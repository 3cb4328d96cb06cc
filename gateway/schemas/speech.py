"""POST /v1/audio/speech: what is taken."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.parameters import SPEECH
from handlers.speech.types import SpeechRequest


def _voice_name(voice: object) -> object:
    return voice["id"] if isinstance(voice, dict) and voice.keys() == {"id"} else voice


class SpeechParams(Wire):
    model: ModelName
    input: Annotated[str, Field(min_length=1, max_length=4096)]
    voice: Annotated[str, BeforeValidator(_voice_name), Field(min_length=1, max_length=256)]
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        return cls.read(screen.sort(read_object(body), SPEECH))

    def to_request(self) -> SpeechRequest:
        return SpeechRequest(text=self.input, voice=self.voice, format=self.response_format, speed=self.speed)
