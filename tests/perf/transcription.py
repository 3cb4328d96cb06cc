"""Transcription against faster-whisper itself, with the starter model: one file, many clips, a long file.

    python -m tests.perf.transcription
    python -m tests.perf.transcription --minutes 60 --times 1
    python -m tests.perf.transcription --url http://127.0.0.1:8000 --key secret

Both sides run the same weights in int8, greedily, with Silero VAD, and write timestamps; both read a WAV file. Each has
a process of its own, so that the threads of neither are in the other's way. Ours is the handler, with its batch
loop and its worker threads, or a running server if --url is given. The best of some runs counts, and both run in turn.
Memory is that of this process, so --url measures none.
"""

import argparse
import gc
import io
import multiprocessing
import resource
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import soundfile

from batching.job import Caller
from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.waveform import Waveform
from handlers.devices import release_memory
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from handlers.transcription.handler import WhisperHandler
from handlers.transcription.openmp import import_ctranslate2
from handlers.transcription.types import TranscriptionRequest
from tests.wer import word_error_rate

CLIP_SECONDS = 10
CLIENTS = 8
CLIPS_EACH = 4
MODELS = Path.home() / ".cache/openai-inference-gateway/models"

Transcribe = Callable[[bytes], Awaitable[str]]


@dataclass(frozen=True)
class Options:
    times: int
    minutes: float
    url: str | None
    key: str | None


class FasterWhisper:
    """As its own documentation calls it."""

    def __init__(self, folder: Path) -> None:
        import_ctranslate2()
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        self._model: Any = WhisperModel(str(folder), device="cpu", compute_type="int8")
        self._batched: Any = BatchedInferencePipeline(self._model)

    def alone(self, file: bytes) -> str:
        segments, _ = self._model.transcribe(io.BytesIO(file), beam_size=1, vad_filter=True)
        return "".join(segment.text for segment in segments)

    def batched(self, file: bytes) -> str:
        segments, _ = self._batched.transcribe(io.BytesIO(file), beam_size=1, batch_size=8, without_timestamps=False)
        return "".join(segment.text for segment in segments)


_library: FasterWhisper


def _open_library(folder: Path) -> None:
    global _library  # noqa: PLW0603 - how a pool of processes hands a model on
    _library = FasterWhisper(folder)


def _alone(file: bytes) -> str:
    return _library.alone(file)


def _batched(file: bytes) -> str:
    return _library.batched(file)


class Theirs:
    """faster-whisper in a process of its own, called one file after another."""

    def __init__(self, folder: Path) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawned, initializer=_open_library, initargs=(folder,))

    def alone(self, file: bytes) -> str:
        return self._process.submit(_alone, file).result()

    def batched(self, file: bytes) -> str:
        return self._process.submit(_batched, file).result()


@asynccontextmanager
async def ours(options: Options) -> AsyncIterator[Transcribe]:
    if options.url is None:
        async with in_process() as transcribe:
            yield transcribe
        return
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    async with httpx2.AsyncClient(base_url=options.url, headers=headers, timeout=600) as client:

        async def transcribe_over_http(file: bytes) -> str:
            reply = await client.post(
                "/v1/audio/transcriptions",
                data={"model": TRANSCRIPTION.id, "response_format": "json"},
                files={"file": ("speech.wav", file)},
            )
            text: str = reply.raise_for_status().json()["text"]
            return text

        yield transcribe_over_http


@asynccontextmanager
async def in_process() -> AsyncIterator[Transcribe]:
    limits = replace(TRANSCRIPTION.limits, max_queue_size=64)
    spec = replace(TRANSCRIPTION, device="cpu", isolation="none", limits=limits)
    handler = WhisperHandler(spec, lambda source: fetch(source, MODELS), max_audio_seconds=36_000)
    await handler.load()

    async def transcribe(file: bytes) -> str:
        async with await handler.open(TranscriptionRequest(io.BytesIO(file)), Caller()) as opened:
            async for _ in opened:
                pass
            return opened.transcript().text

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler.run)
        yield transcribe
        tasks.cancel_scope.cancel()


def wav(samples: Waveform) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    gc.collect()
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


class Peak:
    """The most memory that the process had within this context, over what it had before; in MB."""

    def __enter__(self) -> "Peak":
        release_memory()
        self._before = self._most = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        return (self._most - self._before) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def show(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the figures are this script's output


async def one_file(theirs: Theirs, transcribe: Transcribe, file: bytes, audio: float, times: int) -> None:
    texts = [theirs.alone(file), await transcribe(file)]
    pairs = [
        (await seconds(lambda: _in_turn(theirs.alone, [file])), await seconds(lambda: transcribe(file)))
        for _ in range(times)
    ]
    report("one file", audio, pairs, f"words apart {word_error_rate(*texts):.3f}")


async def clips(theirs: Theirs, transcribe: Transcribe, files: list[bytes], times: int) -> None:
    async def client(some: list[bytes]) -> None:
        for file in some:
            await transcribe(file)

    async def all_clients() -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(CLIENTS):
                tasks.start_soon(client, files[i::CLIENTS])

    pairs = [(await seconds(lambda: _in_turn(theirs.alone, files)), await seconds(all_clients)) for _ in range(times)]
    report(f"{len(files)} clips, {CLIENTS} clients", len(files) * CLIP_SECONDS, pairs)


async def long_file(theirs: Theirs, transcribe: Transcribe, file: bytes, audio: float, options: Options) -> None:
    pairs, peaks = [], []
    for _ in range(options.times):
        slow = await seconds(lambda: _in_turn(theirs.batched, [file]))
        with Peak() as peak:
            fast = await seconds(lambda: transcribe(file))
        pairs.append((slow, fast))
        peaks.append(peak.megabytes)
    memory = "" if options.url else f"peak memory over idle {max(peaks):.0f} MB"
    report(f"{audio / 60:.0f} minutes", audio, pairs, memory)


async def _in_turn(call: Callable[[bytes], str], files: list[bytes]) -> None:
    for file in files:
        call(file)


def report(name: str, audio: float, pairs: list[tuple[float, float]], more: str = "") -> None:
    slow, fast = (min(side) for side in zip(*pairs, strict=True))
    show(
        f"{name:22} faster-whisper {slow:6.2f} s ({audio / slow:5.1f} x real time)   ours {fast:6.2f} s "
        f"({audio / fast:5.1f} x real time)   ratio {slow / fast:.2f}   {more}"
    )


async def compare(options: Options, loads: list[str]) -> None:
    with (fetch(SPEECH_SAMPLES, MODELS) / "two_cities.wav").open("rb") as recording:
        speech = decode(recording, max_seconds=60)
    theirs = Theirs(fetch(TRANSCRIPTION.source, MODELS))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(speech) - CLIP_SECONDS * SAMPLE_RATE, CLIENTS * CLIPS_EACH)
    cut = [wav(speech[start : start + CLIP_SECONDS * SAMPLE_RATE]) for start in starts]
    repeats = round(options.minutes * 60 * SAMPLE_RATE / len(speech))
    async with ours(options) as transcribe:
        theirs.alone(cut[0])
        await transcribe(cut[0])
        if "one" in loads:
            await one_file(theirs, transcribe, wav(speech), len(speech) / SAMPLE_RATE, options.times)
        if "clips" in loads:
            await clips(theirs, transcribe, cut, options.times)
        if "long" in loads:
            file = wav(np.tile(speech, repeats))
            await long_file(theirs, transcribe, file, repeats * len(speech) / SAMPLE_RATE, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2, help="runs of each (2)")
    parser.add_argument("--minutes", type=float, default=20, help="length of the long file (20)")
    parser.add_argument("--loads", default="one,clips,long", help="which to run (one,clips,long)")
    parser.add_argument("--url", help="a running server with the starter model, instead of the handler in process")
    parser.add_argument("--key", help="its API key, where it wants one")
    given = parser.parse_args()
    options = Options(given.times, given.minutes, given.url, given.key)
    anyio.run(compare, options, given.loads.split(","))


if __name__ == "__main__":
    main()
