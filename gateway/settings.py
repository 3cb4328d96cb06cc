"""Settings: the only reader of the environment. One frozen object, validated whole before anything starts."""

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from dotenv.parser import Binding, parse_stream
from pydantic import ByteSize, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.mistakes import SettingsError, allowed_values, did_you_mean, reason
from gateway.model_contents import ModelFile
from gateway.values import (
    Amount,
    ApiKey,
    ApiKeys,
    Connections,
    Device,
    Folder,
    Host,
    ImageHosts,
    LogFormat,
    LogLevel,
    MetricsAccess,
    ModelChoice,
    Origins,
    Port,
    RateLimit,
    Seconds,
    SecondsOrNone,
    Size,
    Switch,
    Threads,
    UpstreamMode,
    UpstreamUrl,
)
from handlers.spec import ModelSpec
from handlers.starter import STARTER_MODELS
from proxy.routing import Mode
from proxy.spec import UpstreamSpec

__all__ = ["Settings", "SettingsError"]

PREFIX = "GATEWAY_"
MIB = 1024 * 1024


def cache_folder(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where fetched models are kept: in the user's cache folder, as the platform has it; "~" is not expanded."""
    base = {
        "win32": environ.get("LOCALAPPDATA") or "~/AppData/Local",
        "darwin": "~/Library/Caches",
    }.get(platform) or (environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(base, "openai-inference-gateway", "models")


class Settings(BaseSettings):
    """Read with `load`; the constructor takes fields and reads nothing. `description` is the line in env.example."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX)

    host: Host = Field(
        "127.0.0.1", description="Address to listen on. Other machines reach 0.0.0.0: set API keys then."
    )
    port: Port = Field(8000, description="Port to listen on.")
    log_level: LogLevel = Field("info", description="Least severe level that is logged.")
    log_format: LogFormat = Field("text", description="Log lines for people, or one JSON object a line.")
    metrics: MetricsAccess = Field(
        "on", description="GET /metrics: on (with a key, if there are keys), open (without) or off."
    )
    api_keys: ApiKeys = Field((), description="Keys that clients may use; empty lets everybody in.")
    max_body_bytes: Size = Field(ByteSize(10 * MIB), description="Largest request body, audio uploads apart.")
    max_audio_bytes: Size = Field(ByteSize(25 * MIB), description="Largest audio upload.")
    max_audio_seconds: Seconds = Field(3600.0, description="Longest audio that is transcribed, in seconds.")
    max_speech_characters: Amount = Field(4096, description="Longest text that is spoken, in characters.")
    max_image_bytes: Size = Field(
        ByteSize(20 * MIB), description="Largest image; as a data URL it is a third longer, within max_body_bytes."
    )
    max_image_pixels: Amount = Field(33_000_000, description="Pixels that the images of a request have together.")
    max_images: Amount = Field(16, description="Images that a request may have.")
    image_hosts: ImageHosts = Field(
        (), description="Hosts that images are fetched from by https; empty switches fetching off."
    )
    image_timeout: Seconds = Field(10.0, description="Seconds that fetching the images of a request may take.")
    body_timeout: Seconds = Field(30.0, description="Seconds that a client has to send its request.")
    request_timeout: Seconds = Field(600.0, description="Seconds that a request may take in all; 504 after that.")
    send_timeout: Seconds = Field(30.0, description="Seconds that a client may take to accept a piece of its answer.")
    keepalive_interval: Seconds = Field(
        15.0, description="Seconds of silence in a stream after which a comment is sent."
    )
    drain_timeout: SecondsOrNone = Field(30.0, description="Seconds that requests in hand get to finish on shutdown.")
    rate_limit: RateLimit | None = Field(None, description="Requests that each key, or address, may make.")
    cors_origins: Origins = Field((), description="Web pages that may call from a browser; empty allows none.")
    models: ModelChoice = Field("starter", description="What to serve: starter, none (proxy only), or a TOML file.")
    models_dir: Folder = Field(
        default_factory=lambda: cache_folder(os.environ),
        validate_default=True,
        description="Folder that fetched models are kept in.",
        examples=["~/.cache/openai-inference-gateway/models"],
    )
    device: Device = Field("auto", description="Where models run, unless the TOML file says otherwise for one.")
    threads: Threads | None = Field(
        None, description="CPU threads a model computes with; empty leaves it to the engines."
    )
    offline: Switch = Field(False, description="Serve only what is in models_dir; never fetch.")
    strict_params: Switch = Field(False, description="Answer 400 to request fields that nobody knows.")
    upstream_url: UpstreamUrl | None = Field(None, description="OpenAI-compatible server for what is not served here.")
    upstream_api_key: ApiKey | None = Field(None, description="Key sent to the upstream; empty sends none.")
    upstream_mode: UpstreamMode = Field(
        Mode.FALLBACK, description="When upstreams are asked: off, fallback, overflow, first or only."
    )
    upstream_longest_wait: Seconds = Field(
        10.0, description="Predicted seconds in the queue from which on mode overflow asks an upstream."
    )
    upstream_route_keys: ApiKeys = Field(
        (), description="API keys that may send x-gateway-route: upstream; without api_keys everybody may."
    )
    upstream_connect_timeout: Seconds = Field(5.0, description="Seconds that connecting to the upstream may take.")
    upstream_first_byte_timeout: Seconds = Field(300.0, description="Seconds to the head of the upstream's reply.")
    upstream_read_timeout: Seconds = Field(300.0, description="Seconds that the upstream may be silent in a reply.")
    max_connections: Connections = Field(1024, description="Connections to the upstream at once.")

    _file: ModelFile = PrivateAttr(ModelFile())
    _keys: Mapping[str, str] = PrivateAttr({})

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, env_file: str | Path | None = ".env") -> Self:
        """Read `GATEWAY_*` from `environ`, then from `env_file` if there is one; an empty value means the default.

        Raises SettingsError with every mistake, wherever it was made.
        """
        from_file, mistakes = _read_env_file(env_file)
        variables = {name: text for name, text in {**from_file, **environ}.items() if name.upper().startswith(PREFIX)}
        mistakes += [_unknown(name) for name in variables if name not in VARIABLES]
        values = {field: variables[name] for name, field in VARIABLES.items() if variables.get(name)}
        values.setdefault("models_dir", str(cache_folder(environ)))
        try:
            settings = cls._validate(values)
        except SettingsError as exc:
            raise SettingsError([*mistakes, *exc.mistakes]) from None
        mistakes += [*settings._contradictions(), *settings._read_keys({**from_file, **environ})]
        if mistakes:
            raise SettingsError(mistakes)
        return settings

    def model_specs(self) -> tuple[ModelSpec, ...]:
        """The models to serve, as they were read when these settings were made; `device` takes the place of "auto"."""
        if self.upstream_mode is Mode.ONLY:
            return ()
        specs = self._file.models
        return tuple(replace(spec, device=self.device) if spec.device == "auto" else spec for spec in specs)

    def upstream_specs(self) -> tuple[UpstreamSpec, ...]:
        """The upstreams, that of GATEWAY_UPSTREAM_URL first; none where every mode is off."""
        if self.upstream_mode is Mode.OFF and all(mode is Mode.OFF for mode in self._file.modes.values()):
            return ()
        named = [replace(spec, api_key=self._keys.get(spec.name)) for spec in self._file.upstreams]
        return (*self._upstream(), *named)

    def mode_of(self, model: str | None) -> Mode:
        return self._file.modes.get(model, self.upstream_mode) if model is not None else self.upstream_mode

    def _upstream(self) -> Iterator[UpstreamSpec]:
        if self.upstream_url is not None:
            yield UpstreamSpec(
                self.upstream_url,
                api_key=self.upstream_api_key.get_secret_value() if self.upstream_api_key else None,
                connect_timeout=self.upstream_connect_timeout,
                first_byte_timeout=self.upstream_first_byte_timeout,
                idle_timeout=self.upstream_read_timeout,
                max_connections=self.max_connections,
            )

    def _read_keys(self, variables: Mapping[str, str]) -> Iterator[str]:
        """What the model file's upstreams have as keys is, up to here, the name of a variable."""
        keys = {}
        for spec in self._file.upstreams:
            if spec.api_key is None:
                continue
            key = variables.get(spec.api_key, "")
            if re.fullmatch(r"[!-~]+", key):
                keys[spec.name] = key
            else:
                yield f"{spec.api_key}: must be a key of printable ASCII without spaces, for the upstream {spec.name}"
        self._keys = keys

    def secrets(self) -> tuple[str, ...]:
        """What must never be shown or logged."""
        upstream = (self.upstream_api_key,) if self.upstream_api_key else ()
        return (*(key.get_secret_value() for key in (*self.api_keys, *upstream)), *self._keys.values())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `load` reads the rest, so nothing depends on an environment unseen."""
        return (init_settings,)

    def model_post_init(self, _: Any) -> None:
        self._file = _read_file(self.models)

    @classmethod
    def _validate(cls, values: Mapping[str, str]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            wrong = {str(error["loc"][0]): error for error in exc.errors()}
            mistakes = [f"{PREFIX}{field.upper()}: {reason(error, ALLOWED[field])}" for field, error in wrong.items()]
        try:
            # Without the fields at fault, for the mistakes in the model file.
            cls.model_validate({field: text for field, text in values.items() if field not in wrong})
        except SettingsError as exc:
            mistakes += exc.mistakes
        raise SettingsError(mistakes)

    def _contradictions(self) -> Iterator[str]:
        if self.upstream_mode is Mode.ONLY and self.models != "none" and self.models != "starter" and self._file.models:
            yield f"GATEWAY_UPSTREAM_MODE: only loads no model; take the [[models]] out of {self.models}"
        elif not self.model_specs() and not self.upstream_specs():
            yield "GATEWAY_MODELS: there is nothing to serve; set GATEWAY_UPSTREAM_URL, or GATEWAY_MODELS=starter"
        for key in self.upstream_route_keys:
            if key not in self.api_keys:
                yield "GATEWAY_UPSTREAM_ROUTE_KEYS: must be among GATEWAY_API_KEYS"
        if self.upstream_api_key and self.upstream_url is None:
            yield "GATEWAY_UPSTREAM_API_KEY: has no effect without GATEWAY_UPSTREAM_URL; set both or none"


VARIABLES: Mapping[str, str] = {f"{PREFIX}{field.upper()}": field for field in Settings.model_fields}
ALLOWED = allowed_values(Settings)


def _unknown(name: str) -> str:
    return f"{name}: is unknown{did_you_mean(name.upper(), VARIABLES, PREFIX)}"


def _read_file(choice: str) -> ModelFile:
    """Raises SettingsError."""
    if choice == "none":
        return ModelFile()
    if choice == "starter":
        return ModelFile(STARTER_MODELS)
    # It takes a tenth of a second to import, which is not needed without a file.
    from gateway.model_file import read_model_file

    try:
        return read_model_file(Path(choice))
    except OSError as exc:
        hint = did_you_mean(choice, ["starter", "none"])
        raise SettingsError([f"GATEWAY_MODELS: {choice} cannot be read ({exc.strerror}){hint}"]) from exc


def _read_env_file(path: str | Path | None) -> tuple[dict[str, str], list[str]]:
    """The assignments of a `.env` file, and what is wrong with it. A broken line may hold a secret: it is not shown."""
    try:
        content = Path(path).read_text("utf-8") if path else ""
    except FileNotFoundError:
        return {}, []
    except (OSError, UnicodeDecodeError) as exc:
        return {}, [f"{path}: cannot be read as a .env file ({getattr(exc, 'strerror', None) or 'it is not UTF-8'})"]
    bindings = list(parse_stream(io.StringIO(content)))
    mistakes = [f"{path}: line {_line(binding)} must be NAME=value" for binding in bindings if not _is_sound(binding)]
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}, mistakes


def _is_sound(binding: Binding) -> bool:
    """An assignment, or a comment or blank line, which has neither key nor value."""
    return not binding.error and (binding.key is None) == (binding.value is None)


def _line(binding: Binding) -> int:
    """Blank lines above count as part of what they precede."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
