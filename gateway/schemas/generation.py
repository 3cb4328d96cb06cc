"""What chats and completions take alike."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, FailFast, Field

from gateway.schemas.common import ModelName, Screen, Wire, read_object
from gateway.schemas.output_format import OutputParams, sort_formats
from gateway.schemas.parameters import STREAM_OPTIONS
from gateway.schemas.sampling import SamplingParams
from gateway.schemas.verdicts import Parameters
from handlers.errors import InvalidRequest

MAX_CHOICES = 128  # of one request


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stop = Annotated[list[StopText], FailFast(), Field(max_length=64), BeforeValidator(_as_list)]


class StreamOptions(Wire):
    include_usage: bool = False


class GenerationParams(SamplingParams, OutputParams):
    model: ModelName
    stop: Stop = Field(default_factory=list)
    n: Choices = 1
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    service_tier: str = "auto"
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    TABLE: ClassVar[Parameters]
    """What becomes of each parameter."""

    @classmethod
    def parse(cls, body: bytes, screen: Screen) -> Self:
        """Raises InvalidRequest, naming what is wrong."""
        fields = screen.sort(read_object(body), cls.TABLE)
        cls.sort_nested(fields, screen)
        params = cls.read(fields)
        params.check()
        return params

    @classmethod
    def sort_nested(cls, fields: dict[str, Any], screen: Screen) -> None:
        """The same as `Screen.sort`, for the objects in `fields`."""
        sort_formats(fields, screen)
        if isinstance(options := fields.get("stream_options"), dict):
            fields["stream_options"] = screen.sort(options, STREAM_OPTIONS, "stream_options.")

    def check(self) -> None:
        """What one field says of another. Raises InvalidRequest."""
        raise NotImplementedError

    @property
    def background(self) -> bool:
        return self.service_tier == "flex" or self.priority > 0

    @property
    def served_tier(self) -> str:
        return "flex" if self.background else "default"

    def check_stream(self) -> None:
        if "stream_options" in self.model_fields_set and not self.stream:
            message = "'stream_options' is only allowed when 'stream' is true. Leave it out, or set 'stream' to true."
            raise InvalidRequest(message, "stream_options", "invalid_value")
