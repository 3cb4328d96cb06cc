"""A thousand damaged files of each format, from several clients at once, to `gateway serve` with an isolated model.

    pytest -m slow --log-cli-level info --log-disable httpx2 tests/gateway/test_uploads_damaged.py -k mp3

The model is a tiny one with random weights, so that the time is that of reading files, and every process is there.
Linux, as it looks at what the processes hold.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx2
import pytest

from handlers.audio.decode import SAMPLE_RATE, decode
from handlers.audio.waveform import Waveform
from handlers.sources import fetch
from handlers.starter import SPEECH_SAMPLES
from tests.clients.live import LiveServer, live_server
from tests.gateway.test_metrics import parsed
from tests.handlers.audio_files import CONTAINERS, damaged, encoded, sweep
from tests.handlers.test_audio_blocks import hours_of_silence
from tests.handlers.test_transcription_ctc import save
from tests.processes import Memory, descriptors, family, forget_peak, memory

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.models]

logger = logging.getLogger(__name__)

URL = "/v1/audio/transcriptions"
FILES = 1_000
CLIENTS = 8
SETTLED_BYTES = 50_000_000
"""What each process may have more in memory afterwards than before."""
PEAK_BYTES = 150_000_000
"""And in between."""

MODELS = """
[[models]]
id = "tiny"
task = "transcription"
source = "dir:{folder}"
isolation = "process"
"""


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Where the server keeps what does not fit into memory."""
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def server(tmp_path: Path, uploads: Path) -> Iterator[LiveServer]:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "models.toml").write_text(MODELS.format(folder=save(tmp_path / "tiny", masked=True)))
    with live_server({"TMPDIR": str(uploads)}, models=str(tmp_path / "models.toml"), log_level="warning") as server:
        yield server


@pytest.fixture(scope="session")
def speech(models_dir: Path) -> Waveform:
    """A second in which something is said."""
    with (fetch(SPEECH_SAMPLES, models_dir) / "beckett.wav").open("rb") as recording:
        return decode(recording, max_seconds=60)[SAMPLE_RATE : 2 * SAMPLE_RATE]


class Client:
    """Sends files and counts the statuses of the replies."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.statuses: Counter[int] = Counter()

    async def send(self, data: bytes) -> str:
        """The text, or none for a file that was refused."""
        upload = {"file": ("a.wav", BytesIO(data), "audio/wav")}
        reply = await self._http.post(URL, data={"model": "tiny"}, files=upload)
        self.statuses[reply.status_code] += 1
        if reply.status_code == 200:
            text: str = reply.json()["text"]
            return text
        assert reply.json()["error"]["param"] == "file"
        return ""

    async def send_damaged(self, data: bytes, seeds: range) -> None:
        """From as many connections as there are clients."""

        async def every(first: int) -> None:
            for seed in seeds[first::CLIENTS]:
                await self.send(damaged(data, seed))

        await asyncio.gather(*map(every, range(CLIENTS)))

    async def metrics(self) -> dict[str, float]:
        """What there is of the one model and of requests, by name."""
        reply = parsed((await self._http.get("/metrics")).text)
        return {name: value for (name, _), value in reply.items()}


def megabytes(before: dict[str, Memory], after: dict[str, Memory]) -> str:
    return "; ".join(
        f"{name} {before[name].resident / 1e6:.0f} MB, then {after[name].resident / 1e6:.0f} MB, "
        f"at most {after[name].peak / 1e6:.0f} MB"
        for name in after
    )


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_damaged_uploads_are_text_or_a_refusal_and_leave_nothing_behind(
    kind: str, server: LiveServer, uploads: Path, speech: Waveform
) -> None:
    data = encoded(kind, speech)
    async with httpx2.AsyncClient(base_url=server.url.removesuffix("/v1"), timeout=120) as http:
        client = Client(http)
        text = await client.send(data)
        await client.send_damaged(data, range(100))
        processes = family(server.pid)
        before = {name: memory(pid) for name, pid in processes.items()}
        files, opened = os.listdir(uploads), descriptors(server.pid)
        for pid in processes.values():
            forget_peak(pid)
        client.statuses.clear()
        started = time.monotonic()
        await client.send_damaged(data, range(FILES))
        seconds = time.monotonic() - started
        statuses = client.statuses.copy()
        assert await client.send(data) == text
        metrics = await client.metrics()
        after = {name: memory(pid) for name, pid in family(server.pid).items()}
        logger.info("%s: %s in %.0f s; %s", kind, dict(sorted(statuses.items())), seconds, megabytes(before, after))
        assert text
        assert {200} < set(statuses) <= {200, 400, 413, 415}
        assert family(server.pid) == processes
        for name in processes:
            assert after[name].resident < before[name].resident + SETTLED_BYTES
            assert after[name].peak < before[name].resident + PEAK_BYTES
        assert os.listdir(uploads) == files
        assert descriptors(server.pid) <= opened + CLIENTS
        assert metrics["gateway_queue_jobs"] == metrics["gateway_running_jobs"] == 0
        assert metrics["gateway_http_requests_in_flight"] == 1  # the one that asks


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus"])
async def test_hours_of_silence_as_large_as_an_upload_may_be_take_little_memory(kind: str, server: LiveServer) -> None:
    bomb = hours_of_silence(kind)
    async with httpx2.AsyncClient(base_url=server.url.removesuffix("/v1"), timeout=120) as http:
        await Client(http).send(encoded(kind, sweep(1)))
        processes = family(server.pid)
        before = {name: memory(pid) for name, pid in processes.items()}
        for pid in processes.values():
            forget_peak(pid)
        started = time.monotonic()
        refused = await http.post(URL, data={"model": "tiny"}, files={"file": ("a.wav", bomb)})
        seconds = time.monotonic() - started
        after = {name: memory(pid) for name, pid in processes.items()}
    logger.info("%s: %d in %.2f s; %s", kind, refused.status_code, seconds, megabytes(before, after))
    assert refused.status_code == 413
    assert "longer than 3600 seconds" in refused.json()["error"]["message"]
    for name in processes:
        assert after[name].peak < before[name].resident + SETTLED_BYTES
