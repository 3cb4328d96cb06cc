"""A speech model from inside its two processes: one transcribes, the other reads uploads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from handlers.audio.decode import measure_seconds, read_blocks
from handlers.devices import is_out_of_memory, release_memory
from handlers.transcription.engine import Engine
from handlers.transcription.loading import load_engine
from handlers.transcription.prompts import CountPrompt, load_prompt_counter
from handlers.transcription.vad import VoiceModel, load_voice_model
from handlers.transcription.windows import Windows
from handlers.transcription.wire import Fields, activity_of, send_cut, send_heard, spec_of, window_of


def open_engine(spec: Fields, folder: str) -> "Transcriber":
    """Raises ModelLoadError."""
    engine = load_engine(spec_of(spec), Path(folder))
    release_memory()
    return Transcriber(engine)


def open_files(spec: Fields, folder: str, max_seconds: float) -> "Reader":
    """max_seconds: of the longest file. Raises ModelLoadError."""
    return Reader(load_voice_model(), load_prompt_counter(spec_of(spec), Path(folder)), max_seconds)


class Transcriber:
    """An engine, in the words of `wire`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def facts(self) -> object:
        return self._engine.facts

    def transcribe(self, windows: Sequence[Fields]) -> Sequence[Fields]:
        """As Engine.transcribe. Raises MemoryError in whatever words the device says it."""
        try:
            answers = self._engine.transcribe([window_of(window) for window in windows])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = str(error)
        else:
            return [send_heard(answer) for answer in answers]
        release_memory()  # now that nothing of the failed batch is held by the error
        raise MemoryError(text)


class Reader:
    """The files that are being read, by the numbers that the gateway gives them."""

    def __init__(self, voices: VoiceModel, count_prompt: CountPrompt, max_seconds: float) -> None:
        self.count_prompt = count_prompt
        self._voices = voices
        self._max_seconds = max_seconds
        self._open: dict[int, _OpenFile] = {}

    def measure(self, *, files: Sequence[BinaryIO]) -> float:
        return measure_seconds(files[0], max_seconds=self._max_seconds)

    def read(
        self, number: int, turn: int, activity: Fields, window_seconds: float, *, files: Sequence[BinaryIO]
    ) -> dict[str, Any]:
        """What Windows.read gives in that turn, counted from 0. Turns come in order.

        A file that is not open here was so in a process that is gone: the turns before, always the same, are skipped.
        """
        if number not in self._open:
            file = open(os.dup(files[0].fileno()), "rb")
            blocks = read_blocks(file, max_seconds=self._max_seconds)
            windows = Windows(blocks, self._voices, activity_of(activity), window_seconds)
            self._open[number] = _OpenFile(file, windows, turn)
        windows = self._open[number].windows
        cuts = windows.read()
        if cuts is None:
            self.close(number)
        return {"cuts": None if cuts is None else [send_cut(cut) for cut in cuts], "duration": windows.duration}

    def close(self, number: int) -> None:
        if opened := self._open.pop(number, None):
            opened.close()


class _OpenFile:
    """skipped: turns that another process has read."""

    def __init__(self, file: BinaryIO, windows: Windows, skipped: int) -> None:
        self.windows = windows
        self._file = file
        try:
            for _ in range(skipped):
                windows.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._file:
            self.windows.close()
