"""Uploads that were made to do harm, through the real route: what they cost, and what they leave on disk."""

import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import FrameType
from typing import Any

import pytest
from starlette import formparsers

from gateway.routes.multipart import MAX_FIELD_BYTES
from tests.gateway.fakes import FakeTranscription, app
from tests.gateway.raw_client import RawClient

pytestmark = pytest.mark.anyio

MB = 1 << 20
END = b"--x--\r\n"


def part(name: bytes, content: bytes = b"", *, filename: bytes | None = None, headers: bytes = b"") -> bytes:
    file = b"" if filename is None else b'; filename="%b"' % filename
    return b'--x\r\ncontent-disposition: form-data; name="%b"%b\r\n%b\r\n%b\r\n' % (name, file, headers, content)


def head(filename: bytes = b"a.wav") -> bytes:
    """A form up to the first byte of its file."""
    return part(b"model", b"tiny-whisper") + part(b"file", filename=filename)[:-2]


def upload(*body: bytes, content_type: str = "multipart/form-data; boundary=x", endless: bool = False) -> RawClient:
    return RawClient(
        "/v1/audio/transcriptions", headers=[("content-type", content_type)], body=body or (b"",), endless=endless
    )


@pytest.fixture
def temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# --- what is written, and by whom


async def test_nothing_is_written_to_disk_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[tuple[int, bool]] = []

    class Recorded(SpooledTemporaryFile[bytes]):
        def write(self, data: Any) -> int:
            written = super().write(data)
            writers.append((threading.get_ident(), bool(vars(self)["_rolled"])))
            return written

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", Recorded)
    handler = FakeTranscription()
    client = await upload(head(), *[bytes(MB // 2)] * 32, b"\r\n" + END).call(app(handler))
    assert client.status == 200
    assert len(handler.files[0]) == 16 * MB
    on_disk = [thread for thread, rolled in writers if rolled]
    assert len(on_disk) >= 30
    assert threading.get_ident() not in on_disk


@pytest.mark.parametrize(
    "filename",
    [b"../../etc/passwd", b"..\\..\\boot.ini", b"a\0b.wav", b"x" * 4000, b"\xe2\x80\xaevaw.exe", b"/dev/stdin", b""],
    ids=["parent", "backslash", "NUL", "long", "right-to-left", "device", "empty"],
)
async def test_the_clients_name_for_a_file_is_never_used(temp_folder: Path, filename: bytes) -> None:
    handler = FakeTranscription()
    client = await upload(head(filename), bytes(2 * MB), b"\r\n" + END).call(app(handler))
    assert client.status == 200
    assert handler.files == [bytes(2 * MB)]
    assert handler.calls[0][0].file.closed
    assert left_in(temp_folder) == []


async def test_a_file_name_of_any_length_is_a_bad_form(temp_folder: Path) -> None:
    client = await upload(head(b"x" * 10_000), b"\r\n" + END).call(app(FakeTranscription()))
    assert client.status == 400
    assert left_in(temp_folder) == []


@pytest.mark.parametrize(
    "rest",
    [b"", b"--x", b"--x-", b"--x\r\ncontent-disposition: form-da", part(b"response_format", b"text")[:-3]],
    ids=["no boundary", "half a boundary", "half the last boundary", "half a header", "half a field"],
)
async def test_a_form_that_was_cut_off_is_refused_instead_of_read_without_its_end(
    temp_folder: Path, rest: bytes
) -> None:
    handler = FakeTranscription()
    client = await upload(head(), bytes(2 * MB), b"\r\n" + rest).call(app(handler))
    assert client.status == 400
    assert "ends before its last boundary" in client.error["message"]
    assert handler.files == []
    assert left_in(temp_folder) == []


async def test_what_follows_the_last_boundary_does_not_matter() -> None:
    form = part(b"model", b"tiny-whisper") + part(b"file", b"RIFF", filename=b"a")
    for end in (b"--x--", END, END + b"epilogue"):
        assert (await upload(form + end).call(app(FakeTranscription()))).status == 200


@pytest.mark.parametrize("text", [b"caf\xe9", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80"])
async def test_a_field_that_is_not_utf_8_is_refused_instead_of_guessed(text: bytes) -> None:
    form = head() + b"\r\n" + part(b"prompt", text) + END
    client = await upload(form).call(app(FakeTranscription()))
    assert client.status == 400
    assert "'prompt' is not UTF-8" in client.error["message"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("charset=utf-8", 200),
        ('charset="UTF-8"', 200),
        ("charset=utf8", 200),
        ("charset=latin-1", 415),
        ("x=utf-8; charset=utf-16", 415),
        ("x=utf-8; charset=undefined", 415),
        ("charset=base64-utf-8", 415),
    ],
)
async def test_a_form_in_another_charset_is_a_415(options: str, status: int) -> None:
    form = head() + b"RIFF\r\n" + END
    client = await upload(form, content_type=f"multipart/form-data; {options}; boundary=x").call(
        app(FakeTranscription())
    )
    assert client.status == status


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """What a full disk looks like from here: writes beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_an_upload_that_does_not_fit_on_the_disk_is_a_503(temp_folder: Path) -> None:
    handler = FakeTranscription()
    with files_up_to(2 * MB):
        client = await upload(head(), *[bytes(MB)] * 4, b"\r\n" + END).call(app(handler))
        assert (client.status, client.error["code"]) == (503, "storage_full")
        assert client.headers["retry-after"] == "30"
        assert (await upload(head(), bytes(MB // 2), b"\r\n" + END).call(app(handler))).status == 200
    assert left_in(temp_folder) == []
    assert len(handler.files) == 1


KILLED_IN_MID_UPLOAD = """
import asyncio, os, signal, sys, tempfile
from tests.gateway.fakes import FakeTranscription, app
from tests.gateway.test_routes_multipart import MB, head, upload

client = upload(head(), bytes(MB), bytes(MB), bytes(MB), endless=True)
receive = client.receive

async def receive_and_die():
    if client.receives == 3:
        links = {fd: os.readlink(fd) for fd in map("/proc/self/fd/{}".format, range(3, 100)) if os.path.lexists(fd)}
        sizes = [os.stat(fd).st_size for fd, link in links.items() if link.startswith(tempfile.gettempdir())]
        print(max(sizes), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return await receive()

asyncio.run(app(FakeTranscription())(client.scope, receive_and_die, client.send))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_killed_in_mid_upload_leaves_no_file(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_MID_UPLOAD],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert killed.returncode == -9, killed.stderr
    assert int(killed.stdout) >= 2 * MB, "the upload was on disk"
    assert left_in(tmp_path) == []


# --- forms that cost more than they should


async def test_a_field_without_a_filename_is_cut_off_before_a_megabyte_of_it_is_read() -> None:
    client = upload(part(b"file")[:-2], *[bytes(MAX_FIELD_BYTES)] * 1000, endless=True)
    await client.call(app(FakeTranscription()))
    assert client.status == 400
    assert client.receives <= 4


@pytest.mark.parametrize(
    "headers",
    [b"x: y\r\n" * 100_000, b"x: " + b"y" * 8 * MB + b"\r\n", b"x" * 8 * MB + b": y\r\n"],
    ids=["100,000 headers", "a header of 8 MB", "a name of 8 MB"],
)
async def test_headers_of_a_part_are_bounded(headers: bytes) -> None:
    client = await upload(part(b"file", b"RIFF", filename=b"a.wav", headers=headers), END).call(
        app(FakeTranscription())
    )
    assert client.status == 400
    assert "multipart form cannot be read" in client.error["message"]


async def calls_for(*body: bytes, **options: Any) -> tuple[int, int]:
    """Status, and function calls made until it was there."""
    client, server, calls = upload(*body, **options), app(FakeTranscription()), 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        await client.call(server)
    finally:
        sys.setprofile(None)
    return client.status, calls


@pytest.mark.parametrize("before", [True, False], ids=["preamble", "epilogue"])
async def test_line_breaks_around_a_form_cost_next_to_nothing(before: bool) -> None:
    breaks, form = b"\r\n" * (2 * MB), part(b"model", b"tiny-whisper") + part(b"file", b"RIFF", filename=b"a") + END
    short = await calls_for(form)
    status, calls = await calls_for(*([breaks, form] if before else [form, breaks]))
    assert status in (200, 400)
    assert calls < 2 * short[1] + 1_000


async def test_a_content_type_full_of_quotes_is_read_in_linear_time() -> None:
    status, calls = await calls_for(content_type="multipart/form-data; " + '\\"' * 25_000)
    assert status == 400
    assert calls < 100_000
