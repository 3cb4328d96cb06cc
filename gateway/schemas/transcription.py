"""POST /v1/audio/transcriptions and /v1/audio/translations: what is taken."""

from collections.abc import Iterable
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import Field

from gateway.schemas.common import ModelName, Screen, Wire
from gateway.schemas.parameters import SERVER_VAD, TRANSCRIPTION, TRANSLATION
from gateway.schemas.transcription_form import read_form
from gateway.schemas.transcription_reply import Format, TranscriptForm
from gateway.schemas.verdicts import Parameters
from handlers.errors import InvalidRequest
from handlers.transcription.types import TranscriptionRequest, VoiceActivity

MAX_ITEMS = 128  # of one list

_DEFAULT = VoiceActivity()

Language = Annotated[str, Field(min_length=1, max_length=32)]
Milliseconds = Annotated[int, Field(ge=0, le=60_000)]


class ServerVad(Wire):
    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = _DEFAULT.threshold
    prefix_padding_ms: Milliseconds = _DEFAULT.prefix_padding_ms
    silence_duration_ms: Milliseconds = _DEFAULT.silence_duration_ms

    def to_voice_activity(self) -> VoiceActivity:
        return VoiceActivity(self.threshold, self.prefix_padding_ms, self.silence_duration_ms)


class AudioParams(Wire):
    """The fields beside the file that both take."""

    model: ModelName
    prompt: str | None = None
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0


class TranslationParams(AudioParams):
    @classmethod
    def parse(cls, form: Iterable[tuple[str, str]], screen: Screen) -> Self:
        """form: the text fields in order. Raises InvalidRequest, naming what is wrong."""
        return cls.read_strings(_used(form, screen, TRANSLATION))

    @property
    def streamed(self) -> bool:
        return False

    def to_request(self, file: BinaryIO) -> TranscriptionRequest:
        return TranscriptionRequest(file, None, self.prompt, self.temperature, task="translate")

    def to_form(self) -> TranscriptForm:
        return TranscriptForm(self.model, self.response_format, task="translate", language="en")


class TranscriptionParams(AudioParams):
    language: Language | None = None
    languages: Annotated[tuple[Language, ...], Field(max_length=MAX_ITEMS)] = ()
    keywords: Annotated[tuple[str, ...], Field(max_length=MAX_ITEMS)] = ()
    include: Annotated[tuple[Literal["logprobs"], ...], Field(max_length=MAX_ITEMS)] = ()
    timestamp_granularities: Annotated[tuple[Literal["word", "segment"], ...], Field(max_length=MAX_ITEMS)] = (
        "segment",
    )
    chunking_strategy: ServerVad | None = None
    stream: bool = False

    @classmethod
    def parse(cls, form: Iterable[tuple[str, str]], screen: Screen) -> Self:
        """form: the text fields in order. Raises InvalidRequest, naming what is wrong."""
        used = _used(form, screen, TRANSCRIPTION)
        if "chunking_strategy" in used:
            used["chunking_strategy"] = _chunking(used["chunking_strategy"], screen)
        params = cls.read_strings(used)
        params._check_language()
        params._check_format()
        return params

    @property
    def streamed(self) -> bool:
        return self.stream

    def to_request(self, file: BinaryIO) -> TranscriptionRequest:
        return TranscriptionRequest(
            file,
            self.language,
            self.prompt,
            self.temperature,
            languages=self.languages,
            keywords=self.keywords,
            word_timestamps="word" in self.timestamp_granularities,
            logprobs="logprobs" in self.include,
            voice_activity=self.chunking_strategy.to_voice_activity() if self.chunking_strategy else _DEFAULT,
        )

    def to_form(self) -> TranscriptForm:
        return TranscriptForm(
            self.model,
            self.response_format,
            language=self.language,
            logprobs="logprobs" in self.include,
            words="word" in self.timestamp_granularities,
            segments="segment" in self.timestamp_granularities,
        )

    def _check_language(self) -> None:
        if self.language is not None and self.languages:
            message = "'languages' are those among which the language is detected; 'language' says which one it is."
            raise InvalidRequest(f"{message} Send one of the two.", "languages", "invalid_value")

    def _check_format(self) -> None:
        if "word" in self.timestamp_granularities and self.response_format != "verbose_json":
            message = "Only 'verbose_json' has a place for words. Send it as 'response_format', or leave 'word' out."
            raise InvalidRequest(message, "timestamp_granularities", "invalid_value")
        if "logprobs" in self.include and self.response_format != "json" and not self.stream:
            message = "Only 'json' has a place for 'logprobs'. Send it as 'response_format', or leave 'include' out."
            raise InvalidRequest(message, "include", "invalid_value")
        if self.stream and self.response_format not in ("json", "text"):
            message = f"A stream has no place for what '{self.response_format}' has."
            way_out = "Send 'json' or 'text' as 'response_format', or leave 'stream' out."
            raise InvalidRequest(f"{message} {way_out}", "stream", "invalid_value")


_NULLABLE = ("stream", "chunking_strategy")


def _used(form: Iterable[tuple[str, str]], screen: Screen, table: Parameters) -> dict[str, Any]:
    """What the wire type is made of."""
    fields = read_form(form, table)
    if "file" in fields:
        message = "'file' came a second time, as a text field. Send one file part, and no text of that name."
        raise InvalidRequest(message, "file", "invalid_value")
    for name in _NULLABLE:
        # OpenAI's package for Node has its users write null in this way.
        if fields.get(name) == "null":
            del fields[name]
    used = screen.sort(fields, table)
    if used.get("response_format") == "diarized_json":
        message = "Speakers are not told apart, so there is no 'diarized_json'. 'verbose_json' has segments with times."
        raise InvalidRequest(message, "response_format", "unsupported_value")
    return used


def _chunking(strategy: object, screen: Screen) -> object:
    """None for `auto`: the audio is cut where nobody speaks in any case, and these are the settings of that."""
    if isinstance(strategy, dict):
        return screen.sort(strategy, SERVER_VAD, "chunking_strategy.")
    if strategy in ("auto", '"auto"'):
        return None
    message = '\'chunking_strategy\' must be \'auto\' or an object such as {"type": "server_vad", "threshold": 0.5}.'
    raise InvalidRequest(message, "chunking_strategy", "invalid_value")
