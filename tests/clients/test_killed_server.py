"""A server that is killed leaves nothing behind: no file, and no process of those that it started."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from handlers.audio.waveform import Waveform
from handlers.starter import TRANSCRIPTION
from tests.clients.live import LiveServer, started_server
from tests.handlers.audio_files import encoded
from tests.processes import children, watched

pytestmark = [pytest.mark.models, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

MODEL = TRANSCRIPTION.id
MB = 1 << 20
BOUNDARY = "limit"


def form(waveform: Waveform) -> bytes:
    fields = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n'
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return f"{fields}{file}".encode() + encoded("wav", waveform) + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(server: LiveServer, body: bytes, size: int) -> socket.socket:
    """Sends `body` as the beginning of an upload of `size` bytes."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    client = socket.create_connection((host, int(port)))
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


def sizes_of_nameless_files(server: LiveServer, folder: Path) -> Iterator[int]:
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        if descriptor.is_symlink() and str(descriptor.readlink()).startswith(str(folder)):
            yield descriptor.stat().st_size


def kill(pid: int) -> None:
    """Unless it is gone, as it should be."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_server_killed_in_mid_upload_and_mid_transcription_leaves_neither_file_nor_process(
    tmp_path: Path, two_cities: Waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "somebody's.wav").write_bytes(b"RIFF")
    monkeypatch.setenv("TMPDIR", str(uploads))
    models = tmp_path / "models.toml"
    models.write_text(f'[[models]]\nid = "{MODEL}"\ntask = "transcription"\nsource = "{TRANSCRIPTION.source}"\n')
    body = form(two_cities)
    with ExitStack() as opened:
        server = opened.enter_context(started_server(models=str(models)))
        pids = children(server.pid)
        ended = {name: opened.enter_context(watched(pid)) for name, pid in pids.items()}
        opened.enter_context(post(server, body, len(body)))
        opened.enter_context(post(server, body, 10 * len(body)))
        server.wait_for(lambda: server.metric("gateway_running_jobs", model=MODEL) > 0)
        server.wait_for(lambda: sum(size > MB for size in sizes_of_nameless_files(server, uploads)) >= 2)
        assert pids.keys() == {MODEL, f"{MODEL} files"}
        assert not any(gone(0) for gone in ended.values())
        # Whoever computes for ever does not notice by itself that nobody is there any more.
        os.kill(pids[MODEL], signal.SIGSTOP)
        opened.callback(kill, pids[MODEL])
        server.process.kill()
        assert server.process.wait(60) == -signal.SIGKILL
        assert all(gone(60) for gone in ended.values())
    assert [path.name for path in uploads.iterdir()] == ["somebody's.wav"]
