"""Reading a multipart form: files on disk, text fields in memory, both bounded, nothing left behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from gateway.errors import UnsupportedContentType
from gateway.state import State
from handlers.errors import NO_SPACE, InvalidRequest, StorageFull

MAX_FIELDS = 128
MAX_FIELD_BYTES = 64 * 1024


@asynccontextmanager
async def multipart(request: Request[State]) -> AsyncIterator[FormData]:
    """The form of `request`, with one file at most.

    What does not fit into a megabyte of memory is written in a thread, to a temporary file without a name: it is gone
    when it is closed, and when the process is killed. The client's name for it is never part of a path.

    Raises UnsupportedContentType for any other kind of body, InvalidRequest for a form that cannot be read, and
    StorageFull where there is no room for the file.
    """
    _check_content_type(request.headers.get("content-type", ""))
    form = await _read_form(request)
    try:
        yield form
    finally:
        # Not `await form.close()`: that goes through a thread, and a cancelled request would be cancelled there again.
        for _, value in form.multi_items():
            if isinstance(value, UploadFile):
                # What did not fit on the disk is written again when the file is closed, which fails again, but closes.
                with suppress(OSError):
                    value.file.close()


def uploaded_file(form: FormData) -> UploadFile:
    """The file part called `file`. Raises InvalidRequest if there is none, or nothing in it."""
    file = form.get("file")
    if file is None:
        message = "Missing required parameter: 'file'. Send the audio as a file part."
        raise InvalidRequest(message, "file", "missing_required_parameter")
    if not isinstance(file, UploadFile):
        message = "'file' came as a text field. Send it as a file part, with a filename (curl: -F file=@speech.wav)."
        raise InvalidRequest(message, "file", "invalid_type")
    if not file.size:
        raise InvalidRequest("'file' is empty. Send an audio file.", "file", "invalid_value")
    return file


def text_fields(form: FormData) -> list[tuple[str, str]]:
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _check_content_type(content_type: str) -> None:
    kind, _, options = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        sent = f"not {kind.strip()[:64]!r}" if kind.strip() else "and none was sent"
        raise UnsupportedContentType(f"The Content-Type must be multipart/form-data, {sent}.")
    if "charset" in options.lower() and "utf-8" not in options.lower():
        raise UnsupportedContentType("The charset of a multipart form must be utf-8. Leave it out.")


async def _read_form(request: Request[State]) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as exc:
        if not isinstance(exc.__context__, MultiPartException):
            raise
        message = (
            f"The multipart form cannot be read: {exc.detail.rstrip('.')}. Send one file, as a file part with a "
            f"filename, and at most {MAX_FIELDS} text fields of {MAX_FIELD_BYTES // 1024} KiB each."
        )
        raise InvalidRequest(message) from None
    except OSError as exc:
        if exc.errno not in NO_SPACE:
            raise
        raise StorageFull from exc
