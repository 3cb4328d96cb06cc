"""What `gateway doctor` looks at: whether this machine can serve what the settings ask for, and what to do if not."""

import importlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from gateway.settings import Settings
from handlers.errors import SourceError
from handlers.sources import parse
from handlers.spec import ModelSpec, Task

Load = Callable[[str], ModuleType]

ENGINES = {
    Task.CHAT: ("torch", "transformers"),
    Task.EMBEDDINGS: ("torch", "transformers"),
    Task.TRANSCRIPTION: ("faster-whisper", "av"),
    Task.SPEECH: ("hibari-tts", "soundfile", "av"),
    Task.RERANK: ("torch", "transformers"),
}
READABLE = ("WAV", "FLAC", "MP3", "OGG")
ENCODERS = {"mp3": "mp3", "aac": "aac", "opus": "libopus"}
ROOM_TO_FETCH = 1 << 30


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. way_out is empty where there is nothing to do."""

    name: str
    status: Status
    detail: str
    way_out: str = ""


def run_checks(settings: Settings, load: Load = importlib.import_module) -> list[Check]:
    """Every finding, in the order to read them. Looks at this machine only; nothing is fetched or changed."""
    checks = [check_python(sys.version_info[:3])]
    if specs := settings.model_specs():
        checks += [
            *check_engines(specs, version),
            check_device(settings.device, specs, load),
            check_readable_audio(load),
            check_encoders(load),
            check_disk(settings.models_dir, specs),
            *(check_model(spec, settings.models_dir, settings.offline) for spec in specs),
        ]
    return [*checks, check_port(settings.host, settings.port)]


def check_python(running: tuple[int, int, int]) -> Check:
    text = ".".join(map(str, running))
    if running < (3, 11, 0):
        return Check("python", Status.FAIL, text, "install Python 3.11 or newer and make the environment anew")
    return Check("python", Status.OK, f"{text} on {platform.system()} {platform.machine()}")


def check_engines(specs: Iterable[ModelSpec], version_of: Callable[[str], str]) -> list[Check]:
    """The packages that the configured models run on."""
    packages = sorted({package for spec in specs for package in ENGINES[spec.task]})
    return [_check_engine(package, version_of) for package in packages]


def _check_engine(package: str, version_of: Callable[[str], str]) -> Check:
    try:
        return Check(package, Status.OK, version_of(package))
    except PackageNotFoundError:
        return Check(package, Status.FAIL, "not installed", f"run: {sys.executable} -m pip install {package}")


def check_device(wish: str, specs: Iterable[ModelSpec], load: Load) -> Check:
    try:
        torch = load("torch")
    except (ImportError, OSError) as exc:
        is_needed = any("torch" in ENGINES[spec.task] for spec in specs)
        status = Status.FAIL if is_needed else Status.WARN
        why = f"torch cannot be loaded ({_first_line(exc)}): no chat, embeddings or reranking here"
        return Check("device", status, why, f"run: {sys.executable} -m pip install --force-reinstall torch")
    found = _accelerator(torch)
    if wish.split(":")[0] not in ("auto", "cpu", found):
        way_out = "set GATEWAY_DEVICE=auto, or install the driver and a torch build for it"
        return Check("device", Status.FAIL, f"{wish} is asked for and not there", way_out)
    if found is None or wish == "cpu":
        return _check_cpu(wish, torch)
    name = torch.cuda.get_device_name() if found == "cuda" else platform.processor()
    return Check("device", Status.OK, f"{found} ({name})")


def _accelerator(torch: ModuleType) -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _check_cpu(wish: str, torch: ModuleType) -> Check:
    detail = f"cpu, {torch.get_num_threads()} threads"
    if wish == "cpu":
        return Check("device", Status.OK, detail)
    return Check(
        "device",
        Status.WARN,
        f"no accelerator: models run on the {detail}",
        "nothing, for small models such as the starter set; larger ones need a GPU to be of use",
    )


def check_readable_audio(load: Load) -> Check:
    try:
        formats = load("soundfile").available_formats()
    except (ImportError, OSError) as exc:
        return Check(
            "audio input",
            Status.WARN,
            f"soundfile cannot be loaded ({_first_line(exc)})",
            f"run: {sys.executable} -m pip install --force-reinstall soundfile",
        )
    if missing := [name for name in READABLE if name not in formats]:
        way_out = "upgrade soundfile, or the libsndfile that it uses"
        return Check("audio input", Status.WARN, f"libsndfile does not know {', '.join(missing)}", way_out)
    return Check("audio input", Status.OK, ", ".join(READABLE).lower())


def check_encoders(load: Load) -> Check:
    try:
        av = load("av")
    except (ImportError, OSError) as exc:
        return Check(
            "audio output",
            Status.WARN,
            f"PyAV cannot be loaded ({_first_line(exc)}): speech answers in wav, flac and pcm only",
            f"run: {sys.executable} -m pip install --force-reinstall av",
        )
    if missing := [name for name, encoder in ENCODERS.items() if not _has_encoder(av, encoder)]:
        way_out = "install av from its wheel, which has every encoder, or ask for response_format wav"
        return Check("audio output", Status.WARN, f"no encoder for {', '.join(missing)}", way_out)
    return Check("audio output", Status.OK, f"wav, flac, pcm, {', '.join(ENCODERS)}")


def _has_encoder(av: ModuleType, name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True


def check_disk(models_dir: Path, specs: Iterable[ModelSpec]) -> Check:
    """Room and the right to write, which only matter while something is left to fetch."""
    sources = [parse(source) for spec in specs for source in spec.sources]
    is_complete = all(source.cached(models_dir) for source in sources if source.is_remote)
    folder = next(parent for parent in (models_dir, *models_dir.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {models_dir}"
    if is_complete:
        return Check("models folder", Status.OK, detail)
    if not os.access(folder, os.W_OK):
        return Check("models folder", Status.FAIL, f"{folder} cannot be written to", "set GATEWAY_MODELS_DIR")
    if free < ROOM_TO_FETCH:
        return Check("models folder", Status.FAIL, detail, "make room, or set GATEWAY_MODELS_DIR to a larger disk")
    return Check("models folder", Status.OK, detail)


def check_model(spec: ModelSpec, models_dir: Path, offline: bool) -> Check:
    """The weights, or the first of the model's other files that is not in order."""
    checks = [_check_source(f"model {spec.id}", source, models_dir, offline) for source in spec.sources]
    return next((check for check in checks if check.status is not Status.OK), checks[0])


def _check_source(name: str, text: str, models_dir: Path, offline: bool) -> Check:
    source = parse(text)
    if source.is_remote and not offline and source.cached(models_dir) is None:
        return Check(
            name, Status.WARN, f"{source} is not fetched yet", "run `gateway pull`; or `gateway serve` does it"
        )
    try:
        folder = source.fetch(models_dir, lambda step, done, total: None, offline=True)
    except SourceError as exc:
        detail, _, way_out = str(exc).rpartition("; ")
        return Check(name, Status.FAIL, detail, way_out)
    return Check(name, Status.OK, str(folder))


def check_port(host: str, port: int) -> Check:
    name = f"port {port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as exc:
        reason = str(exc.strerror).partition(" (while")[0]
        way_out = "stop the other program, or set GATEWAY_HOST and GATEWAY_PORT"
        return Check(name, Status.FAIL, f"cannot listen on {host} ({reason})", way_out)
    return Check(name, Status.OK, f"free on {host}")


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
