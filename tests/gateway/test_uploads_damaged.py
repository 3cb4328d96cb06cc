"""A thousand damaged files of each format through the route, the handler and the decoders, before a fake engine."""

import asyncio
import os
import tempfile
from pathlib import Path

import httpx2
import orjson
import pytest

from tests.gateway.fakes import app
from tests.handlers.audio_files import CONTAINERS, damaged, encoded, sweep
from tests.handlers.speech_models import FakeEngine
from tests.handlers.test_transcription_handler import SPEC, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

URL = "/v1/audio/transcriptions"
FILES = 1_000


def memory() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def left_in(folder: Path) -> list[str]:
    return os.listdir(folder)


@pytest.mark.parametrize("kind", CONTAINERS)
async def test_damaged_uploads_are_text_or_a_refusal_and_leave_nothing_behind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data, pid, statuses = encoded(kind, sweep(1)), os.getpid(), set()
    async with serving(FakeEngine()) as handler:
        transport = httpx2.ASGITransport(app=app(handler))
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:

            async def send(seed: int) -> None:
                files = {"file": ("a.wav", damaged(data, seed), "audio/wav")}
                response = await client.post(URL, data={"model": SPEC.id}, files=files)
                statuses.add(response.status_code)
                if response.status_code != 200:
                    assert orjson.loads(response.content)["error"]["param"] == "file"

            await asyncio.gather(*map(send, range(20)))
            before = memory()
            for seed in range(FILES):
                await send(seed)
            assert memory() - before < 50_000_000
    assert {200} < statuses <= {200, 400, 413, 415}
    assert os.getpid() == pid
    assert left_in(tmp_path) == []
