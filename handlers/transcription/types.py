"""What a transcription is, apart from any wire format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal


@dataclass(frozen=True, slots=True)
class VoiceActivity:
    """Where speech begins and ends. threshold: the probability of a voice that counts as one, 0 to 1.

    prefix_padding_ms: what is kept before a voice. silence_duration_ms: how long a pause ends a stretch of speech.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """file: seekable, read in a worker; the caller closes it.

    language: ISO-639-1; None detects it. languages: the ones among which it is detected; empty for all.
    task: "translate" gives English whatever is spoken. prompt: earlier text. keywords: names and words that may occur.
    temperature: 0 is greedy, and warmer where the engine finds the text improbable.
    word_timestamps, logprobs: whether segments carry words and tokens.
    """

    file: BinaryIO
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    task: Literal["transcribe", "translate"] = "transcribe"
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    word_timestamps: bool = False
    logprobs: bool = False
    voice_activity: VoiceActivity = VoiceActivity()


@dataclass(frozen=True, slots=True)
class Word:
    """start, end: seconds from the beginning of the file. word: as it stands in the text, with its space before."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the text. bytes: what it stands for; of some scripts only tokens together make a character."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech. start, end: seconds from the beginning of the file; seek: where its window begins, in
    hundredths of a second. tokens: ids in the model's vocabulary. avg_logprob, compression_ratio, no_speech_prob: what
    the fallback to warmer temperatures goes by. words, logprobs: empty unless they were asked for."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: Sequence[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: Sequence[Word] = ()
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """duration: seconds of audio decoded. text is empty for silence. language: ISO-639-1; None if nobody spoke it.

    audio_tokens: steps of the encoder, fifty a second for Whisper. text_tokens: of prompt and keywords.
    output_tokens: generated.
    """

    text: str
    language: str | None
    duration: float
    segments: Sequence[Segment] = ()
    audio_tokens: int = 0
    text_tokens: int = 0
    output_tokens: int = 0
