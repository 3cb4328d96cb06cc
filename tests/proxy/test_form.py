"""The model's name found in a form that comes in pieces, and the form given again with another one."""

import errno
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from proxy.errors import NoRoom
from proxy.form import IN_MEMORY, ModelField, Upload, is_form

TYPE = "multipart/form-data; boundary=xyz"
MODEL = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
FILE = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n--xy\r\nRIFF\r\n\r\n'
OTHER = b'--xyz\r\ncontent-disposition: form-data; name=prompt\r\n\r\nname="model"\r\n'
END = b"--xyz--\r\n"


def pieces_of(form: bytes, size: int) -> list[bytes]:
    return [form[start : start + size] for start in range(0, len(form), size)]


def upload_of(*pieces: bytes, content_type: str = TYPE) -> Upload:
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    left: Iterator[Message] = iter([*messages, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(left)

    return Upload(receive, content_type)


@pytest.mark.parametrize("form", [MODEL + FILE + END, FILE + MODEL + END, OTHER + FILE + MODEL + OTHER + END])
@given(size=st.integers(1, 300))
@settings(max_examples=40)
def test_the_name_is_found_however_the_form_is_cut(form: bytes, size: int) -> None:
    field = ModelField(TYPE)
    for piece in pieces_of(form, size):
        field.feed(piece)

    assert field.value == b"whisper"
    assert form[slice(*field.span)] == b"whisper"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (TYPE, FILE + END),
        (TYPE, END),
        (TYPE, b""),
        (TYPE, MODEL[:-9]),
        (TYPE, MODEL.replace(b"whisper", b"w" * 5000)),
        (TYPE, b"--xyz\r\n" + b"x" * 20_000),
        (TYPE, MODEL.replace(b'name="model"', b'name="model"; filename="m"') + END),
        ("multipart/form-data", MODEL + END),
        ("multipart/form-data; boundary=other", MODEL + END),
    ],
)
def test_a_form_without_a_readable_name_has_none(content_type: str, form: bytes) -> None:
    field = ModelField(content_type)
    field.feed(form)

    assert field.value is None


@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_no_bytes_break_it(data: bytes) -> None:
    field = ModelField(TYPE)
    field.feed(b"--xyz\r\n" + data)
    field.feed(data)

    assert field.done or field.value is None


@pytest.mark.anyio
async def test_a_form_is_given_again_from_its_beginning_as_often_as_it_is_kept() -> None:
    form = FILE + bytes(2 * IN_MEMORY) + b"\r\n" + MODEL + END
    upload = upload_of(*pieces_of(form, 70_000))

    assert await upload.model() == "whisper"
    for _ in range(2):
        assert b"".join([piece async for piece in upload.pieces()]) == form
    renamed = b"".join([piece async for piece in upload.pieces("large")])
    assert renamed == form.replace(b"whisper", b"large")
    assert upload.longer_by("large") == len(renamed) - len(form)
    upload.close()


@pytest.mark.anyio
async def test_what_need_not_be_kept_is_passed_on_and_forgotten() -> None:
    form = MODEL + FILE + bytes(3 * IN_MEMORY) + END
    upload = upload_of(*pieces_of(form, 10_000))
    await upload.model()
    upload.keep = False

    assert b"".join([piece async for piece in upload.pieces()]) == form
    assert upload._length == 10_000
    upload.close()


@pytest.mark.anyio
async def test_as_a_servers_receive_it_ends_and_then_says_that_the_client_left() -> None:
    upload = upload_of(MODEL, FILE + END)
    await upload.model()
    receive = upload.receive()
    messages = [await receive()]
    while messages[-1]["type"] == "http.request":
        messages.append(await receive())

    assert b"".join(message.get("body", b"") for message in messages) == MODEL + FILE + END
    assert [message["more_body"] for message in messages[:-1]] == [True] * (len(messages) - 2) + [False]
    assert messages[-1]["type"] == "http.disconnect"
    upload.close()


@pytest.mark.anyio
async def test_a_client_that_leaves_in_the_middle_of_its_form_is_noticed() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with closing(Upload(receive, TYPE)) as upload, pytest.raises(ClientDisconnect):
        await upload.model()


@pytest.mark.anyio
async def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with closing(upload_of(FILE, MODEL + END)) as upload:
        monkeypatch.setattr(upload._kept, "write", full)
        with pytest.raises(NoRoom):
            await upload.model()


def test_which_bodies_are_forms() -> None:
    assert is_form("Multipart/Form-Data; boundary=x")
    assert not is_form("application/json")
