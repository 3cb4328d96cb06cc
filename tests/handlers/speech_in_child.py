"""What tests run in a speech model's processes. Both connect to a latch where the folder has one."""

import faulthandler
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from handlers.audio.decode import measure_seconds
from handlers.errors import ModelLoadError
from handlers.transcription.child import Reader, Transcriber
from handlers.transcription.engine import Heard, Window
from handlers.transcription.prompts import count_words
from handlers.transcription.wire import Fields
from tests.handlers.speech_models import EverythingIsSpeech, facts, say_length

POISON = 3.0
"""Seconds of a window that takes the engine's process down."""
UNMEASURABLE, UNREADABLE = 5.0, 6.0
"""Seconds of a file whose measuring, or reading, takes the process down."""
SLOW = 7.0
"""Seconds of a file whose reading stops at the latch."""


class Engine:
    facts = facts(window_seconds=10)

    def __init__(self, folder: Path) -> None:
        self._latch = _latch(folder / "engine")

    def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        lengths = [window.seconds for window in windows]
        if POISON in lengths:
            _abort()
        if self._latch:
            self._latch.sendall(" ".join(f"{length:g}" for length in lengths).encode() + b"\n")
            self._latch.recv(1)
        return [say_length(window) for window in windows]

    def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        raise NotImplementedError


class FragileReader(Reader):
    def __init__(self, folder: Path, max_seconds: float) -> None:
        super().__init__(EverythingIsSpeech(), count_words, max_seconds)
        self._latch = _latch(folder / "files")

    def measure(self, *, files: Sequence[BinaryIO]) -> float:
        seconds = super().measure(files=files)
        if seconds == UNMEASURABLE:
            _abort()
        return seconds

    def read(
        self, number: int, turn: int, activity: Fields, window_seconds: float, *, files: Sequence[BinaryIO]
    ) -> dict[str, Any]:
        seconds = measure_seconds(files[0], max_seconds=1000) if turn == 0 else 0
        if seconds == UNREADABLE:
            _abort()
        if seconds == SLOW and self._latch:
            self._latch.sendall(b"reading\n")
            self._latch.recv(1)
        return super().read(number, turn, activity, window_seconds, files=files)


def open_engine(spec: Fields, folder: str) -> Transcriber:
    if (Path(folder) / "refuse").exists():
        raise ModelLoadError(f"{spec['id']}: refused")
    if (Path(folder) / "crash").exists():
        _abort()
    return Transcriber(Engine(Path(folder)))


def open_files(spec: Fields, folder: str, max_seconds: float) -> Reader:
    return FragileReader(Path(folder), max_seconds)


def _latch(path: Path) -> socket.socket | None:
    if not path.exists():
        return None
    latch = socket.socket(socket.AF_UNIX)
    latch.connect(str(path))
    return latch


def _abort() -> None:
    faulthandler.disable()  # its report would be noise here
    os.abort()
