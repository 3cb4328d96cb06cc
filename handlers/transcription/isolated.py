"""A speech model in two processes of its own: what they compute can be stopped, and their crashes cost one request."""

import itertools
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from io import UnsupportedOperation
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from batching.errors import BatchingError, ProcessDied
from batching.process import ProcessWorker
from batching.restarts import Restarts
from batching.stats import ProcessStats
from batching.worker import Worker
from handlers.audio.containers import closed_early, undecodable
from handlers.errors import NO_SPACE, ModelLoadError, StorageFull
from handlers.spec import ModelSpec
from handlers.transcription.engine import EngineFacts, Heard, Window
from handlers.transcription.types import VoiceActivity
from handlers.transcription.windows import Cut
from handlers.transcription.wire import ERRORS, cut_of, facts_of, heard_of, send_spec

ENGINE_FACTORY = "handlers.transcription.child:open_engine"
FILES_FACTORY = "handlers.transcription.child:open_files"

# A turn of reading takes a fraction of this. Killing the process makes every other file be read again from its start.
_READING_PATIENCE = 0.3

# A batch of 128 windows is halved seven times until the one at fault is alone; pauses are short, as requests wait.
_MOST_CRASHES = 20
_LONGEST_PAUSE = 1.0


class IsolatedEngine:
    """As handlers.transcription.engine.Engine, in a process. factory: of a handlers.transcription.child.Transcriber."""

    role = "engine"
    facts: EngineFacts

    def __init__(self, spec: ModelSpec, folder: Path, *, factory: str = ENGINE_FACTORY) -> None:
        self._process = _process(spec.id, factory, {"spec": send_spec(spec), "folder": str(folder)})

    def stats(self) -> ProcessStats:
        return self._process.stats()

    async def start(self) -> None:
        """Raises ModelLoadError."""
        await _start(self._process)
        self.facts = facts_of(await self._process.call("facts"))

    async def transcribe(self, windows: Sequence[Window]) -> Sequence[Heard | Exception]:
        """As Engine.transcribe. Cancelling it ends the computation at once."""
        return [heard_of(answer) for answer in await self._process.call("transcribe", windows)]

    async def aclose(self) -> None:
        await self._process.aclose()


class IsolatedFiles:
    """As handlers.transcription.files.Files, in a process.

    max_seconds: of the longest file. factory: of a `handlers.transcription.child.Reader`.
    """

    role = "files"

    def __init__(self, spec: ModelSpec, folder: Path, max_seconds: float, *, factory: str = FILES_FACTORY) -> None:
        arguments = {"spec": send_spec(spec), "folder": str(folder), "max_seconds": max_seconds}
        self._process = _process(f"{spec.id} files", factory, arguments)
        self._disk = Worker(f"{spec.id} uploads")
        self._numbers = itertools.count()

    def stats(self) -> ProcessStats:
        return self._process.stats()

    async def start(self) -> None:
        """Raises ModelLoadError."""
        await _start(self._process)

    async def count_prompt(self, prompt: str | None, keywords: Sequence[str]) -> int:
        if not prompt and not keywords:
            return 0
        count: int = await self._process.call("count_prompt", prompt, keywords)
        return count

    async def open(self, file: BinaryIO, activity: VoiceActivity, window_seconds: float) -> "IsolatedReading":
        """A file that is in memory goes to disk. Raises StorageFull."""
        if file.closed:
            raise closed_early()
        on_disk = await self._disk.run(_on_disk, file)
        number, is_copy = next(self._numbers), on_disk is not file
        return IsolatedReading(self._process, number, on_disk, activity, window_seconds, is_copy=is_copy)

    async def aclose(self) -> None:
        await self._process.aclose()


class IsolatedReading:
    """As handlers.transcription.files.Reading. number: by which the process knows the file. is_copy: to be closed."""

    def __init__(
        self,
        process: ProcessWorker,
        number: int,
        file: BinaryIO,
        activity: VoiceActivity,
        window_seconds: float,
        *,
        is_copy: bool,
    ) -> None:
        self.duration = 0.0
        self._process = process
        self._number = number
        self._file = file
        self._activity = activity
        self._window_seconds = window_seconds
        self._is_copy = is_copy
        self._turn = 0

    async def measure(self) -> float:
        try:
            seconds: float = await self._process.call("measure", files=[self._file], patience=_READING_PATIENCE)
        except ProcessDied as error:
            raise undecodable() from error
        return seconds

    async def read(self, requests: Sequence[str] = ()) -> Sequence[Cut] | None:
        arguments = (self._number, self._turn, self._activity, self._window_seconds)
        try:
            answer = await self._process.call(
                "read", *arguments, files=[self._file], requests=requests, patience=_READING_PATIENCE
            )
        except ProcessDied as error:
            raise undecodable() from error
        self._turn += 1
        self.duration = answer["duration"]
        return None if answer["cuts"] is None else [cut_of(cut) for cut in answer["cuts"]]

    async def close(self) -> None:
        """The process has a descriptor of its own, which it closes in its turn."""
        with suppress(BatchingError):  # a process that is gone has nothing open
            self._process.submit("close", self._number)
        if self._is_copy:
            self._file.close()


def _process(name: str, factory: str, arguments: dict[str, object]) -> ProcessWorker:
    restarts = Restarts(longest=_LONGEST_PAUSE, most=_MOST_CRASHES)
    return ProcessWorker(name, factory, arguments, errors=ERRORS, restarts=restarts)


async def _start(process: ProcessWorker) -> None:
    try:
        await process.start()
    except ProcessDied as error:
        raise ModelLoadError(f"{error}; fetch its files again, or choose another model") from error


def _on_disk(file: BinaryIO) -> BinaryIO:
    """The file itself if it has a descriptor, which a spooled one gets now; else a copy. Raises StorageFull."""
    try:
        return _with_descriptor(file)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StorageFull from error


def _with_descriptor(file: BinaryIO) -> BinaryIO:
    try:
        file.fileno()
        file.flush()
    except UnsupportedOperation:
        with ExitStack() as on_failure:
            copy: BinaryIO = on_failure.enter_context(tempfile.TemporaryFile())
            file.seek(0)
            copyfileobj(file, copy)
            copy.flush()
            on_failure.pop_all()
        return copy
    return file
