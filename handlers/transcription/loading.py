"""From a model's description to the engine that runs it."""

from pathlib import Path

from batching.child_process import PROCESSES_WORK
from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec
from handlers.transcription.engine import Engine


def load_engine(spec: ModelSpec, folder: Path) -> Engine:
    """What `spec.engine` names; "auto" is transformers for files that it has saved, else faster-whisper.

    Raises ModelLoadError.
    """
    match engine_name(spec, folder):
        case "transformers":
            from handlers.transcription.transformers import load as load_transformers

            return load_transformers(spec, folder)
        case "faster-whisper":
            from handlers.transcription.openmp import import_ctranslate2

            import_ctranslate2()
            from handlers.transcription.faster_whisper import load as load_faster_whisper

            return load_faster_whisper(spec, folder)
        case other:
            raise ModelLoadError(f"model {spec.id}: the engine {other} does not transcribe")


def engine_name(spec: ModelSpec, folder: Path) -> str:
    if spec.engine != "auto":
        return spec.engine
    converted = (folder / "model.bin").is_file()
    return "transformers" if (folder / "config.json").is_file() and not converted else "faster-whisper"


def is_isolated(spec: ModelSpec, folder: Path) -> bool:
    """Whether the model runs in processes of its own; "auto" has faster-whisper do so. Raises ModelLoadError."""
    if spec.isolation == "process" and not PROCESSES_WORK:
        raise ModelLoadError(
            f'model {spec.id}: processes need Unix sockets, which are not here; set isolation = "none"'
        )
    if spec.isolation == "auto":
        return PROCESSES_WORK and engine_name(spec, folder) == "faster-whisper"
    return spec.isolation == "process"
