"""Uploads on their way to windows: measured and read a turn at a time, in a thread."""

from collections.abc import Sequence
from typing import BinaryIO, Protocol

from batching.worker import Worker
from handlers.audio.decode import measure_seconds, read_blocks
from handlers.transcription.engine import Engine
from handlers.transcription.types import VoiceActivity
from handlers.transcription.vad import VoiceModel
from handlers.transcription.windows import Cut, Windows


class Reading(Protocol):
    """One file. Cancelling a wait leaves it in a state in which it can only be closed."""

    @property
    def duration(self) -> float:
        """Seconds read so far."""

    async def measure(self) -> float:
        """As handlers.audio.decode.measure_seconds."""

    async def read(self, requests: Sequence[str] = ()) -> Sequence[Cut] | None:
        """As Windows.read. requests: ids of the requests served, for the log."""

    async def close(self) -> None:
        """Nothing reads the file any more when this returns, or whoever opened it may close it all the same."""


class Files(Protocol):
    """What reads the files of one model."""

    async def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        """As Engine.count_prompt."""

    async def open(self, file: BinaryIO, activity: VoiceActivity, window_seconds: float) -> Reading:
        """Nothing of the file is read yet, and somebody else closes it. window_seconds: of the longest window."""


class FilesInThread:
    """max_seconds: of the longest file."""

    def __init__(self, name: str, engine: Engine, voices: VoiceModel, *, max_seconds: float) -> None:
        self._engine = engine
        self._voices = voices
        self._max_seconds = max_seconds
        self._worker = Worker(f"{name} files")

    async def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        return await self._worker.run(self._engine.count_prompt, prompt, keywords)

    async def open(self, file: BinaryIO, activity: VoiceActivity, window_seconds: float) -> "ReadingInThread":
        blocks = read_blocks(file, max_seconds=self._max_seconds)
        windows = Windows(blocks, self._voices, activity, window_seconds)
        return ReadingInThread(self._worker, file, windows, self._max_seconds)


class ReadingInThread:
    def __init__(self, worker: Worker, file: BinaryIO, windows: Windows, max_seconds: float) -> None:
        self._worker = worker
        self._file = file
        self._windows = windows
        self._max_seconds = max_seconds

    @property
    def duration(self) -> float:
        return self._windows.duration

    async def measure(self) -> float:
        return await self._worker.run(self._measure)

    async def read(self, requests: Sequence[str] = ()) -> Sequence[Cut] | None:
        return await self._worker.run(self._windows.read, requests=requests)

    async def close(self) -> None:
        await self._worker.run(self._windows.close)

    def _measure(self) -> float:
        return measure_seconds(self._file, max_seconds=self._max_seconds)
