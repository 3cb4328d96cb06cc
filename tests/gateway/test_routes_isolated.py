"""Transcription in processes of its own, as clients and those who watch see it: real processes, on a still clock."""

import os
import signal
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest

from handlers.transcription import isolated
from handlers.transcription.handler import WhisperHandler
from tests.clock import MANUAL_CLOCK, advance, has_timer, until
from tests.gateway.fakes import app
from tests.gateway.test_routes_multipart import files_up_to
from tests.handlers.audio_files import sound_file, sweep
from tests.handlers.speech_in_child import POISON
from tests.handlers.test_transcription_isolated import begin, children, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return MANUAL_CLOCK


def client_of(handler: WhisperHandler) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app(handler)), base_url="http://gateway")


async def send(client: httpx2.AsyncClient, seconds: float) -> httpx2.Response:
    files = {"file": ("a.wav", BytesIO(sound_file(sweep(seconds)).getvalue()), "audio/wav")}
    return await client.post("/v1/audio/transcriptions", data={"model": "whisper", "language": "de"}, files=files)


async def readiness(client: httpx2.AsyncClient) -> tuple[int, Any]:
    reply = await client.get("/readyz")
    return reply.status_code, reply.json()


def told(state: str, status: str = "ready") -> dict[str, Any]:
    return {"status": status, "models": {"whisper": state}}


async def test_a_process_that_is_killed_from_outside_is_restarting_and_then_ready_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as handler, client_of(handler) as client:
        for number, role in enumerate(("engine", "files")):
            os.kill(children(handler)[number], signal.SIGKILL)
            await until(lambda: has_timer(0.1))
            assert await readiness(client) == (200, told("restarting"))
            waiting = begin(send(client, 2))
            await advance(0.1)
            assert (await waiting).json()["text"] == "2"
            assert await readiness(client) == (200, told("ready"))
            assert handler.stats().processes[role].restarts == {"crashed": 1, "killed": 0}


async def test_a_process_that_is_given_up_is_no_longer_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_MOST_CRASHES", 2)
    async with serving(tmp_path) as handler, client_of(handler) as client:
        (tmp_path / "crash").touch()
        failed = await send(client, POISON)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
        await until(lambda: has_timer(0.1))
        assert await readiness(client) == (200, told("restarting"))
        await advance(0.1)
        refused = await send(client, 2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
        assert await readiness(client) == (503, told("broken", "broken"))


@pytest.mark.parametrize("seconds", [0.1, 2, 40], ids=["in a buffer", "in memory", "on disk"])
async def test_a_full_disk_is_a_503_and_the_next_file_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Two seconds are 64 kB, which the form keeps in memory and the process reads from disk; 40 s are over 1 MB."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with serving(tmp_path) as handler, client_of(handler) as client:
        here, opened = os.listdir(tmp_path), len(os.listdir("/dev/fd"))
        with files_up_to(1_000):
            full = await send(client, seconds)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "storage_full")
        assert full.headers["retry-after"] == "30"
        assert (await send(client, 2)).json()["text"] == "2"
        await until(lambda: len(os.listdir("/dev/fd")) == opened)
        assert os.listdir(tmp_path) == here
