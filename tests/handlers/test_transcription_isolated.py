"""A speech model in processes of its own, real ones around an engine that does as it is told, on a still clock."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from batching.errors import DeadlineExceeded, EngineFailed, ProcessBroken
from batching.job import Caller
from batching.limits import Limits
from batching.stats import Outcome
from handlers.errors import InvalidRequest, ModelLoadError
from handlers.spec import ModelSpec, Task
from handlers.transcription import isolated
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.isolated import IsolatedEngine, IsolatedFiles
from handlers.transcription.types import Transcript, TranscriptionRequest
from tests.batching.child_latch import ChildLatch
from tests.clock import MANUAL_CLOCK, advance, has_timer, settle, until
from tests.handlers.audio_files import sound_file, sweep
from tests.handlers.running import running
from tests.handlers.speech_in_child import POISON, SLOW, UNMEASURABLE, UNREADABLE

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


@pytest.fixture
def latch(tmp_path: Path) -> Iterator[ChildLatch]:
    latch = ChildLatch(tmp_path / "engine")
    yield latch
    latch.close()


@pytest.fixture
def files_latch(tmp_path: Path) -> Iterator[ChildLatch]:
    latch = ChildLatch(tmp_path / "files")
    yield latch
    latch.close()


def handler_for(folder: Path, **limits: Any) -> WhisperHandler:
    spec = ModelSpec(
        "whisper", Task.TRANSCRIPTION, "dir:here", isolation="process", limits=Limits(**{"max_batch_size": 4, **limits})
    )
    return WhisperHandler(
        spec,
        lambda source: folder,
        max_audio_seconds=60,
        isolated_engine=partial(IsolatedEngine, factory="tests.handlers.speech_in_child:open_engine"),
        isolated_files=partial(IsolatedFiles, factory="tests.handlers.speech_in_child:open_files"),
    )


@asynccontextmanager
async def serving(folder: Path, latch: ChildLatch | None = None, **limits: Any) -> AsyncIterator[WhisperHandler]:
    async with running(handler_for(folder, **limits)) as handler:
        if latch:
            await latch.connected()
        yield handler


async def transcript(
    handler: WhisperHandler, seconds: float, caller: Caller | None = None, **options: Any
) -> Transcript:
    request = TranscriptionRequest(sound_file(sweep(seconds)), **{"language": "de", **options})
    async with await handler.open(request, caller or Caller()) as opened:
        async for _ in opened:
            pass
        return opened.transcript()


def begin(call: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    return asyncio.create_task(call)


async def after_pauses(task: "asyncio.Future[T]") -> T:
    """Its result; whatever waits for a time need not."""
    while not task.done():
        await advance(0.1)
    return await task


def children(handler: WhisperHandler) -> list[int]:
    return [process._process.pid or 0 for process in handler._processes]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_file_is_read_and_transcribed_in_processes_that_end_with_the_handler(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/dev/fd"))
    async with serving(tmp_path) as handler:
        pids = children(handler)
        done = await transcript(handler, 50, prompt="two words")
        assert handler.describe()["isolation"] == "process"
        assert handler.stats().broken is None
        assert handler.stats().audio_seconds == pytest.approx(50)
    assert sum(map(float, done.text.split())) == pytest.approx(50)
    assert done.segments[-1].end == pytest.approx(50)
    assert [segment.id for segment in done.segments] == list(range(len(done.segments)))
    assert (done.language, done.duration, done.text_tokens) == ("de", 50, 2)
    assert os.getpid() not in pids
    assert len(set(pids)) == 2
    assert not any(map(exists, pids))
    await until(lambda: len(os.listdir("/dev/fd")) == descriptors)


async def test_a_file_that_is_refused_in_the_process_is_refused_here(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        for file in (BytesIO(b"#EXTM3U\n"), sound_file(sweep(61))):
            with pytest.raises(InvalidRequest) as refused:
                await handler.open(TranscriptionRequest(file, language="de"), Caller())
            assert refused.value.param == "file"
        closed = BytesIO()
        closed.close()
        with pytest.raises(InvalidRequest, match="closed before"):
            await handler.open(TranscriptionRequest(closed, language="de"), Caller())
        assert (await transcript(handler, 2)).text == "2"


async def test_who_leaves_in_mid_file_stops_the_computation_and_the_queue_is_kept(
    tmp_path: Path, latch: ChildLatch
) -> None:
    async with serving(tmp_path, latch, max_batch_size=1) as handler:
        first = children(handler)
        leaving = begin(transcript(handler, 50))
        assert await latch.begun() == "9.392"
        staying = begin(transcript(handler, 2))
        await until(lambda: handler.stats().batches.waiting > 0 and handler._admission.files == 2)
        leaving.cancel()
        await latch.ended()
        await latch.connected()
        assert await latch.begun() == "2"
        latch.let_through()
        assert (await staying).text == "2"
        assert handler.stats().batches.running == 0
        assert handler.stats().batches.outcomes[Outcome.FAILED] == 0
        assert handler._admission.files == 0
        assert [now == before for now, before in zip(children(handler), first, strict=True)] == [False, True]


async def test_a_deadline_in_mid_file_stops_the_computation(tmp_path: Path, latch: ChildLatch) -> None:
    async with serving(tmp_path, latch) as handler:
        call = begin(transcript(handler, 2, Caller(deadline=anyio.current_time() + 5)))
        assert await latch.begun() == "2"
        await advance(5)
        await latch.ended()
        with pytest.raises(DeadlineExceeded):
            await call


async def test_who_shares_a_batch_with_one_who_leaves_is_answered(tmp_path: Path, latch: ChildLatch) -> None:
    async with serving(tmp_path, latch) as handler:
        pids = children(handler)
        first = begin(transcript(handler, 1))
        assert await latch.begun() == "1"
        leaving, staying = begin(transcript(handler, 2)), begin(transcript(handler, 4))
        await until(lambda: handler.stats().batches.waiting == 2)
        latch.let_through()
        assert sorted((await latch.begun()).split()) == ["2", "4"]
        leaving.cancel()
        await settle()
        latch.let_through()
        assert ((await first).text, (await staying).text) == ("1", "4")
        assert children(handler) == pids


async def test_a_native_crash_of_the_engine_fails_one_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler:
        calls = asyncio.gather(*(transcript(handler, seconds) for seconds in (1, 2, POISON, 4)), return_exceptions=True)
        one, two, poison, four = await after_pauses(calls)
        assert [answer.text for answer in (one, two, four) if isinstance(answer, Transcript)] == ["1", "2", "4"]
        assert isinstance(poison, EngineFailed)
        assert handler.stats().broken is None


@pytest.mark.parametrize("seconds", [UNMEASURABLE, UNREADABLE])
async def test_a_native_crash_of_a_decoder_refuses_one_file_and_the_others_are_read_on(
    tmp_path: Path, latch: ChildLatch, seconds: float
) -> None:
    async with serving(tmp_path, latch, max_batch_size=1) as handler:
        reading = begin(transcript(handler, 50))
        assert await latch.begun() == "9.392"
        with pytest.raises(InvalidRequest, match="cannot be decoded") as refused:
            await transcript(handler, seconds)
        assert refused.value.param == "file"
        for _ in range(30):
            latch.let_through()
        done = await after_pauses(reading)
        assert sum(map(float, done.text.split())) == pytest.approx(50)
        assert done.segments[-1].end == pytest.approx(50)


async def test_who_leaves_while_a_decoder_hangs_has_it_killed(tmp_path: Path, files_latch: ChildLatch) -> None:
    async with serving(tmp_path, files_latch) as handler:
        call = begin(transcript(handler, SLOW))
        assert await files_latch.begun() == "reading"
        call.cancel()
        await until(lambda: has_timer(0.3))
        await advance(0.3)
        await files_latch.ended()
        await files_latch.connected()
        assert (await transcript(handler, 2)).text == "2"
        assert handler._admission.files == 0


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.handlers.test_transcription_isolated import handler_for

async def main():
    await handler_for(Path(sys.argv[1])).load()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def started(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program, *arguments])


async def test_a_gateway_that_is_killed_takes_both_processes_along(
    tmp_path: Path, latch: ChildLatch, files_latch: ChildLatch
) -> None:
    with started(PARENT, str(tmp_path)) as gateway:
        try:
            await latch.connected()
            await files_latch.connected()
        finally:
            gateway.kill()
    await latch.ended()
    await files_latch.ended()


async def test_a_draining_handler_waits_for_its_process(tmp_path: Path, latch: ChildLatch) -> None:
    async with serving(tmp_path, latch) as handler:
        call = begin(transcript(handler, 2))
        assert await latch.begun() == "2"
        draining = begin(handler.drain())
        await settle()
        assert not draining.done()
        latch.let_through()
        await draining
        assert (await call).text == "2"


async def test_a_model_that_is_given_up_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_MOST_CRASHES", 2)
    async with serving(tmp_path) as handler:
        (tmp_path / "crash").touch()
        with pytest.raises(EngineFailed):
            await transcript(handler, POISON)
        await until(lambda: has_timer(0.1))
        await advance(0.1)
        with pytest.raises(ProcessBroken, match="ended 2 times"):
            await transcript(handler, 2)
        assert "whisper" in (handler.stats().broken or "")


async def test_a_model_that_cannot_be_loaded_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    for reason, says in (("refuse", "whisper: refused"), ("crash", "while it started; fetch its files again")):
        (tmp_path / reason).touch()
        handler = handler_for(tmp_path)
        with pytest.raises(ModelLoadError, match=says):
            await handler.load()
        assert children(handler) == [0, 0]
        (tmp_path / reason).unlink()
