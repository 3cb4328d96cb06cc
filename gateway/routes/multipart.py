"""Reading a multipart form: files on disk, text fields in memory, both bounded, nothing left behind."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
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


class _Parser(MultiPartParser):
    """Starlette's, which takes a form that was cut off for a whole one, and reads as Latin-1 what is not UTF-8."""

    _has_ended = False

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            _check_utf8(self._current_part.data, self._current_part.field_name)
        super().on_part_end()

    def on_end(self) -> None:
        self._has_ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._has_ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("It ends before its last boundary, so a part of it may be missing")
        return form


def _check_utf8(text: bytearray, name: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise MultiPartException(f"Its field '{name[:100]}' is not UTF-8") from None


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
    kind = content_type.partition(";")[0]
    if kind.strip().lower() != "multipart/form-data":
        sent = f"not {kind.strip()[:64]!r}" if kind.strip() else "and none was sent"
        raise UnsupportedContentType(f"The Content-Type must be multipart/form-data, {sent}.")
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise UnsupportedContentType("The charset of a multipart form must be utf-8. Leave it out.")


async def _read_form(request: Request[State]) -> FormData:
    try:
        async with aclosing(request.stream()) as stream:
            parser = _Parser(request.headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
            return await parser.parse()
    except MultiPartException as exc:
        message = (
            f"The multipart form cannot be read: {exc.message.rstrip('.')}. Send one file, as a file part with a "
            f"filename, and at most {MAX_FIELDS} text fields of {MAX_FIELD_BYTES // 1024} KiB each."
        )
        raise InvalidRequest(message) from None
    except OSError as exc:
        if exc.errno not in NO_SPACE:
            raise
        raise StorageFull from exc
