"""The TOML file: a `[[models]]` table for each model, an `[[upstreams]]` table for each upstream, checked whole."""

import tomllib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gateway.mistakes import Allowed, Refusal, SettingsError, allowed_values, did_you_mean, reason
from gateway.model_contents import ModelFile
from gateway.values import Count, Folder, Size, UpstreamUrl
from handlers.errors import SourceError
from handlers.sources import parse as parse_source
from handlers.spec import SPLIT, ModelSpec, Task
from handlers.starter import EMBEDDINGS, STARTER_MODELS
from proxy.routing import Mode
from proxy.spec import UpstreamSpec


def _check_source(source: str) -> str:
    try:
        parse_source(source)
    except (SourceError, RuntimeError) as exc:  # RuntimeError: "~name" without an account of that name
        raise Refusal(str(exc)) from exc
    return source


Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$"),
    Allowed("a name of letters, digits and . _ : / @ + -"),
]
TaskName = Annotated[Task, Allowed("chat, embeddings, transcription, speech or rerank")]
Source = Annotated[str, AfterValidator(_check_source), Allowed("a source: hub:…, dir:…, wheel:… or package:…")]
Names = Annotated[tuple[Name, ...], Allowed("a list of names of letters, digits and . _ : / @ + -")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"], Allowed("auto, float32, bfloat16, float16 or int8")
]
Quantization = Annotated[Literal["none", "bnb-8bit", "bnb-4bit"], Allowed("none, bnb-8bit or bnb-4bit")]
Engine = Annotated[
    Literal["auto", "transformers", "faster-whisper", "hibari", "kokoro"],
    Allowed("auto, transformers, faster-whisper, hibari or kokoro"),
]
Isolation = Annotated[Literal["process", "none"], Allowed("process or none")]
Place = Annotated[
    str,
    Field(pattern=rf"^(auto|cpu|mps|cuda(:[0-9]{{1,3}})?|{SPLIT})$"),
    Allowed(f"auto, cpu, mps, cuda, cuda:1 or {SPLIT}"),
]
MemoryByDevice = Annotated[
    dict[Annotated[str, Field(pattern=r"^(cpu|mps|cuda:[0-9]{1,3})$")], Size],
    Field(min_length=1),
    Allowed('a table of sizes by device, such as { "cuda:0" = "20GiB", cpu = "10GiB" }'),
]
Bytes = Annotated[int, Field(strict=True, ge=0), Allowed("a number of bytes, 0 for none")]
Wait = Annotated[float, Field(strict=True, ge=0, le=60), Allowed("a number of seconds from 0 to 60")]


class LimitsTable(BaseModel):
    """`limits` of one model; what is left out is as for the starter model of that task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_queue_size: Count | None = None
    max_queue_cost: Count | None = None
    max_batch_size: Count | None = None
    max_batch_cost: Count | None = None
    max_wait: Wait | None = None
    max_batch_seconds: Wait | None = None


class ModelTable(BaseModel):
    """One `[[models]]` table; what is left out has the default of handlers.spec.ModelSpec."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    id: Name
    task: TaskName
    source: Source
    aliases: Names | None = None
    dtype: Dtype | None = None
    quantization: Quantization | None = None
    engine: Engine | None = None
    isolation: Isolation | None = None
    device: Place | None = None
    max_memory: MemoryByDevice | None = None
    offload_folder: Folder | None = None
    max_model_len: Count | None = None
    openai_tokens: Source | None = None
    prefix_cache_bytes: Bytes | None = None
    images: Annotated[bool, Field(strict=True), Allowed("true or false")] | None = None
    embedding_cache_bytes: Bytes | None = None
    matryoshka_dimensions: Annotated[tuple[Count, ...], Allowed("a list of whole numbers of at least 1")] | None = None
    limits: Annotated[LimitsTable, Allowed(f"a table of {', '.join(LimitsTable.model_fields)}")] | None = None


UpstreamName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$"), Allowed("a name of small letters, digits, _ and -")
]
Variable = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"),
    Allowed("the name of the environment variable that has the key"),
]
UpstreamModels = Annotated[
    tuple[Name, ...] | dict[Name, Name],
    Field(min_length=1),
    Allowed('a list of names, or a table from names here to names there, such as { "gpt-large" = "gpt-5" }'),
]
Timeout = Annotated[float, Field(strict=True, gt=0, le=86_400), Allowed("a number of seconds above 0 and up to 86400")]
Weight = Annotated[int, Field(strict=True, ge=1, le=1000), Allowed("a whole number from 1 to 1000")]
Connections = Annotated[int, Field(strict=True, ge=1, le=65_535), Allowed("a whole number from 1 to 65535")]
HealthPath = Annotated[
    str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$"), Allowed("a path below the base URL, such as /models")
]


class UpstreamTable(BaseModel):
    """One `[[upstreams]]` table; what is left out has the default of proxy.spec.UpstreamSpec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: UpstreamName
    base_url: UpstreamUrl
    api_key_env: Variable | None = None
    forward_client_key: Annotated[bool, Field(strict=True), Allowed("true or false")] | None = None
    models: UpstreamModels | None = None
    weight: Weight | None = None
    connect_timeout: Timeout | None = None
    first_byte_timeout: Timeout | None = None
    idle_timeout: Timeout | None = None
    total_timeout: Timeout | None = None
    max_connections: Connections | None = None
    health_path: HealthPath | None = None
    health_interval: Timeout | None = None


ModeName = Annotated[Mode, Allowed("off, fallback, overflow, first or only")]


class FileTable(BaseModel):
    """What is neither a model nor an upstream."""

    model_config = ConfigDict(frozen=True)

    upstream_modes: Annotated[
        dict[Name, ModeName], Allowed('a table from names of models to modes, such as { "gpt-large" = "first" }')
    ] = Field(default_factory=dict)


_ENGINES = {
    Task.CHAT: ("transformers",),
    Task.EMBEDDINGS: ("transformers",),
    Task.TRANSCRIPTION: ("faster-whisper", "transformers"),
    Task.SPEECH: ("hibari", "transformers", "kokoro"),
    Task.RERANK: ("transformers",),
}
# A pair of query and document is to a reranker what a text is to an embeddings model.
_ONLY_FOR = {
    "quantization": Task.CHAT,
    "prefix_cache_bytes": Task.CHAT,
    "images": Task.CHAT,
    "isolation": Task.TRANSCRIPTION,
    "openai_tokens": Task.EMBEDDINGS,
    "embedding_cache_bytes": Task.EMBEDDINGS,
    "matryoshka_dimensions": Task.EMBEDDINGS,
}
_LIMITS = {**{spec.task: spec.limits for spec in STARTER_MODELS}, Task.RERANK: EMBEDDINGS.limits}
_READERS = (Task.CHAT, Task.EMBEDDINGS, Task.RERANK)
_TABLES: Mapping[str, type[BaseModel]] = {"models": ModelTable, "upstreams": UpstreamTable}
_KEYS = (*_TABLES, *FileTable.model_fields)
_ALLOWED: Mapping[type[BaseModel], Mapping[str, Allowed]] = {
    table: allowed_values(table) for table in (ModelTable, UpstreamTable, LimitsTable, FileTable)
}

# What pydantic puts into a location beside names and numbers.
_INNER = ("[key]", "tuple[constrained-str, ...]", "dict[constrained-str,constrained-str]")

T = TypeVar("T", bound=BaseModel)


def read_model_file(path: Path) -> ModelFile:
    """Raises OSError if the file cannot be read, SettingsError with every mistake in it."""
    document = _parse(path)
    mistakes = [f"{key}: is unknown{did_you_mean(key, _KEYS)}" for key in document if key not in _KEYS]
    if not _is_filled_list(document.get("models", document.get("upstreams"))):
        mistakes.append("models: is missing; write one [[models]] table for each model")
    models = _read_tables(document, "models", ModelTable, mistakes)
    upstreams = _read_tables(document, "upstreams", UpstreamTable, mistakes)
    modes = _read_modes(document, mistakes)
    mistakes += [*_contradictions(models), *_shared_names(models), *_upstream_names(upstreams)]
    if mistakes:
        raise SettingsError(f"{path}: {mistake}" for mistake in mistakes)
    return ModelFile(
        tuple(_spec(table, path.parent) for table in models.values()),
        tuple(_upstream(table) for table in upstreams.values()),
        modes,
    )


def _is_filled_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _read_tables(document: Mapping[str, Any], key: str, table: type[T], mistakes: list[str]) -> dict[str, T]:
    """By place, such as `models[0]`."""
    raw_tables = document.get(key, [])
    if not isinstance(raw_tables, list):
        if key != "models":
            mistakes.append(f"{key}: must be tables; write [[{key}]] above each")
        return {}
    tables: dict[str, T] = {}
    for index, raw in enumerate(raw_tables):
        place = f"{key}[{index}]"
        try:
            tables[place] = table.model_validate(raw)
        except ValidationError as exc:
            mistakes += [_mistake(place, error, table) for error in exc.errors()]
    return tables


def _read_modes(document: Mapping[str, Any], mistakes: list[str]) -> Mapping[str, Mode]:
    try:
        given = {key: value for key, value in document.items() if key in FileTable.model_fields}
        return FileTable.model_validate(given).upstream_modes
    except ValidationError as exc:
        allowed = _ALLOWED[FileTable]["upstream_modes"]
        for error in exc.errors():
            name = "".join(f".{part}" for part in error["loc"][1:] if part != "[key]")
            words = "must be off, fallback, overflow, first or only" if name else reason(error, allowed)
            mistakes.append(f"upstream_modes{name}: {words}")
        return {}


def _upstream_names(tables: Mapping[str, UpstreamTable]) -> Iterator[str]:
    owners: dict[str, str] = {"local": "the word for this server"}
    for place, table in tables.items():
        owner = owners.setdefault(table.name, f"{place}.name")
        if owner != f"{place}.name":
            yield f"{place}.name: must be a name of its own; {table.name} is {owner} too"
        if table.api_key_env is not None and table.forward_client_key:
            yield f"{place}.api_key_env: has no effect beside forward_client_key; leave one of them out"
        if table.health_interval is not None and table.health_path is None:
            yield f"{place}.health_interval: has no effect without health_path; set both or none"


def _upstream(table: UpstreamTable) -> UpstreamSpec:
    given = {name: getattr(table, name) for name in table.model_fields_set}
    if isinstance(table.models, tuple):
        given["models"] = {name: name for name in table.models}
    given["api_key"] = given.pop("api_key_env", None)
    return UpstreamSpec(**given)


def _parse(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise SettingsError([f"{path}: is not TOML: {exc}"]) from exc


def _mistake(place: str, error: ErrorDetails, table: type[BaseModel]) -> str:
    location = error["loc"]
    if not location:
        return f"{place}: must be a table"
    path = place + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part not in _INNER
    )
    names = [part for part in location if isinstance(part, str)]
    if error["type"] == "extra_forbidden":
        siblings = (LimitsTable if len(names) > 1 else table).model_fields
        return f"{path}: is unknown{did_you_mean(names[-1], siblings)}"
    allowed = {**_ALLOWED[LimitsTable], **_ALLOWED[table]}
    return f"{path}: {reason(error, next(allowed[name] for name in reversed(names) if name in allowed))}"


def _contradictions(tables: Mapping[str, ModelTable]) -> Iterator[str]:
    """Values that the model's task cannot follow."""
    for place, table in tables.items():
        engines = _ENGINES[table.task]
        if table.engine not in (None, "auto", *engines):
            yield f"{place}.engine: {table.task} models are run by {' or '.join(engines)}; leave it out"
        for name, task in _ONLY_FOR.items():
            if getattr(table, name) not in (None, "none") and table.task is not task:
                yield f"{place}.{name}: is for {task} models; this one is for {table.task}"
        if table.dtype == "int8" and table.task in _READERS:
            yield f"{place}.dtype: int8 is for transcription models; this one is for {table.task}"
        yield from _split(place, table)
        yield from _without_effect(place, table)
        if table.max_model_len and table.task not in _READERS:
            yield f"{place}.max_model_len: is for chat, embeddings and rerank models; this one is for {table.task}"


def _split(place: str, table: ModelTable) -> Iterator[str]:
    if table.device == SPLIT and table.task in (Task.EMBEDDINGS, Task.RERANK, Task.TRANSCRIPTION):
        yield f"{place}.device: split is for chat models; this one is for {table.task}"
    for name in {"max_memory", "offload_folder"} & table.model_fields_set:
        if table.device != SPLIT:
            yield f'{place}.{name}: has no effect unless device is "split"'


def _without_effect(place: str, table: ModelTable) -> Iterator[str]:
    """What an engine does not have is refused rather than ignored."""
    limits = table.limits.model_fields_set if table.limits else set()
    if table.task is Task.CHAT:
        for name in limits & {"max_wait", "max_batch_seconds"}:
            yield f"{place}.limits.{name}: has no effect, as chats join a running batch at any step; leave it out"
    if table.task is Task.TRANSCRIPTION and table.engine == "transformers" and table.dtype == "int8":
        yield f"{place}.dtype: speech models of transformers run in float32, bfloat16 or float16"
    if table.task is Task.SPEECH:
        yield from _voice_without_effect(place, table, limits)


def _voice_without_effect(place: str, table: ModelTable, limits: AbstractSet[str]) -> Iterator[str]:
    if table.engine == "transformers" or not (table.engine or table.source.startswith("package:")):
        if table.dtype == "int8" or table.device == SPLIT:
            yield f"{place}: voices of transformers run in float32, bfloat16 or float16 on one device"
        return
    for name in limits & {"max_batch_size", "max_batch_cost", "max_wait", "max_batch_seconds"}:
        yield f"{place}.limits.{name}: has no effect, as this voice speaks one sentence after another; leave it out"
    if table.engine == "kokoro" and table.dtype not in (None, "auto"):
        yield f"{place}.dtype: this voice runs in the format of its file; leave it out"
    elif table.dtype not in (None, "auto", "int8"):
        yield f"{place}.dtype: this voice runs in int8; leave it out"
    if table.device not in (None, "auto", "cpu"):
        yield f"{place}.device: this voice runs on the CPU; leave it out"


def _shared_names(tables: Mapping[str, ModelTable]) -> Iterator[str]:
    """Ids and aliases live in one name space."""
    owners: dict[str, str] = {}
    for place, table in tables.items():
        aliases = ((f"{place}.aliases[{index}]", alias) for index, alias in enumerate(table.aliases or ()))
        for path, name in ((f"{place}.id", table.id), *aliases):
            owner = owners.setdefault(name, path)
            if owner != path:
                yield f"{path}: must be a name of its own; {name} is {owner} too"


def _spec(table: ModelTable, folder: Path) -> ModelSpec:
    given = {name: getattr(table, name) for name in table.model_fields_set}
    limits = table.limits.model_dump(exclude_unset=True) if table.limits else {}
    given |= {name: _beside(folder, given[name]) for name in ("source", "openai_tokens") if given.get(name)}
    if table.offload_folder:
        given["offload_folder"] = str(folder / table.offload_folder)
    return ModelSpec(**{**given, "limits": replace(_LIMITS[table.task], **limits)})


def _beside(folder: Path, source: str) -> str:
    """A relative `dir:` is relative to the file that names it, not to wherever the server is started."""
    kind, _, path = source.partition(":")
    if kind == "dir" and not path.startswith("~"):
        return f"dir:{(folder / path).absolute()}"
    return source
