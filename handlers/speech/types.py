"""What a synthesis is, apart from any wire format."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """voice: an OpenAI voice name or a local one. speed: 0.25 to 4. format: wav, mp3, opus, flac, aac or pcm."""

    text: str
    voice: str
    format: str = "mp3"
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Speech:
    """audio: encoded bytes of `media_type`. voice: the local voice that spoke. duration: seconds."""

    audio: bytes
    media_type: str
    voice: str
    duration: float
