"""What processes of its own cost a speech model: clips of 10 s, all at once, to two servers by turns.

    python -m tests.perf.isolation
    python -m tests.perf.isolation --clips 1 --times 20

Both are `gateway serve` with the starter model, one with `isolation = "none"`, the other with "process".
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import httpx2

from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES, TRANSCRIPTION
from tests.clients.live import live_server
from tests.perf.transcription import CLIP_SECONDS, MODELS, show, wav

KINDS = ("none", "process")


def serve(stack: ExitStack, isolation: str) -> str:
    """The base URL of a server that ends with the stack."""
    file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".toml"))
    lines = (f'id = "{TRANSCRIPTION.id}"', 'task = "transcription"', f'source = "{TRANSCRIPTION.source}"')
    file.write("\n".join(("[[models]]", *lines, f'isolation = "{isolation}"')))
    file.flush()
    return stack.enter_context(live_server(models=file.name, log_level="warning")).url


def clips(count: int) -> Sequence[bytes]:
    with Path(fetch(SPEECH_SAMPLES, MODELS), "two_cities.wav").open("rb") as recording:
        speech = decode(recording, max_seconds=60)
    length = CLIP_SECONDS * SAMPLE_RATE
    apart = (len(speech) - length) // max(1, count - 1)
    return [wav(speech[i * apart : i * apart + length]) for i in range(count)]


async def all_at_once(client: httpx2.AsyncClient, url: str, files: Sequence[bytes]) -> float:
    """Seconds until the last is answered."""

    async def send(file: bytes) -> None:
        form = {"model": TRANSCRIPTION.id}
        reply = await client.post(f"{url}/audio/transcriptions", data=form, files={"file": ("clip.wav", file)})
        reply.raise_for_status()

    started = time.perf_counter()
    async with anyio.create_task_group() as sending:
        for file in files:
            sending.start_soon(send, file)
    return time.perf_counter() - started


async def compare(urls: Sequence[str], files: Sequence[bytes], times: int) -> None:
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with httpx2.AsyncClient(timeout=600) as client:
        for url in urls:
            await all_at_once(client, url, files)
        for _ in range(times):
            for kind, url in zip(KINDS, urls, strict=True):
                taken[kind].append(await all_at_once(client, url, files))
    for kind, seconds in taken.items():
        runs = " ".join(f"{one:.2f}" for one in seconds)
        show(f"{kind:8} {runs} s   median {statistics.median(seconds):.2f} s   best {min(seconds):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="sent at once (8)")
    parser.add_argument("--times", type=int, default=8, help="runs of each (8)")
    given = parser.parse_args()
    with ExitStack() as stack:
        urls = [serve(stack, kind) for kind in KINDS]
        anyio.run(compare, urls, clips(given.clips), given.times)


if __name__ == "__main__":
    main()
