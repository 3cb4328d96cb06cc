"""From a model's description to the engine that runs it."""

from pathlib import Path

from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec
from handlers.speech.engine import Engine


def load_engine(spec: ModelSpec, folder: Path) -> Engine:
    """What `spec.engine` names; "auto" is transformers for a folder with its config, else hibari.

    Raises ModelLoadError.
    """
    match _engine_name(spec, folder):
        case "transformers":
            from handlers.speech.transformers import load as load_transformers

            return load_transformers(spec, folder)
        case "hibari":
            from handlers.speech.hibari import load as load_hibari

            return load_hibari(spec, folder)
        case "kokoro":
            from handlers.speech.kokoro import load as load_kokoro

            return load_kokoro(spec, folder)
        case other:
            raise ModelLoadError(f"model {spec.id}: the engine {other} does not speak")


def _engine_name(spec: ModelSpec, folder: Path) -> str:
    if spec.engine != "auto":
        return spec.engine
    return "transformers" if (folder / "config.json").is_file() else "hibari"
