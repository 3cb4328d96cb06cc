"""What travels between a ProcessWorker and its process: JSON and raw buffers, never a pickled object.

    length of the head, 4 bytes, big-endian │ head, JSON │ the buffers, one after the other

A value is JSON with arrays of numpy and `bytes` anywhere in it; dataclasses become objects, tuples lists. A float that
is no number becomes null outside an array, as JSON has none.
"""

import secrets
import struct
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import orjson

Part: TypeAlias = "bytes | memoryview"

LENGTH_BYTES = 4
MAX_FILES = 16
"""How many open files go with one call."""

_LENGTH = struct.Struct("!I")


class MessageTooLarge(ValueError):
    """A value, or what claims to be one, has more bytes than the limit."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes is over the limit of {limit}")


def pack(value: object, limit: int) -> Sequence[Part]:
    """What to send for `value`, in order; arrays and bytes are not copied.

    Raises MessageTooLarge over `limit` bytes, and TypeError for what is neither JSON nor a buffer.
    """
    buffers: list[Part] = []
    kinds: list[tuple[int, str | None, Sequence[int] | None]] = []
    # No text in the value can be taken for a buffer: nobody knows this word beforehand.
    mark = secrets.token_hex(8)

    def set_aside(item: object) -> dict[str, int]:
        buffer, dtype, shape = _as_buffer(item)
        buffers.append(buffer)
        kinds.append((len(buffer), dtype, shape))
        return {mark: len(buffers) - 1}

    body = orjson.Fragment(orjson.dumps(value, default=set_aside))
    head = orjson.dumps({"mark": mark, "buffers": kinds, "value": body})
    size = len(head) + sum(map(len, buffers))
    if size > limit:
        raise MessageTooLarge(size, limit)
    return [_LENGTH.pack(len(head)) + head, *buffers]


def head_length(prefix: bytes | bytearray, limit: int) -> int:
    """Raises MessageTooLarge."""
    (length,) = _LENGTH.unpack(prefix)
    if length > limit:
        raise MessageTooLarge(length, limit)
    return int(length)


class Head:
    """The head of a message that is coming in. sizes: of the buffers that follow, in bytes."""

    def __init__(self, head: bytes | bytearray, limit: int) -> None:
        fields = orjson.loads(head)
        self._mark: str = fields["mark"]
        self._kinds: list[tuple[int, str | None, list[int] | None]] = fields["buffers"]
        self._value = fields["value"]
        self.sizes = [size for size, _, _ in self._kinds]
        if (size := len(head) + sum(self.sizes)) > limit:
            raise MessageTooLarge(size, limit)

    def value(self, buffers: Sequence[bytearray]) -> Any:
        """The value with its buffers, which arrays share, in their places."""
        return self._filled(self._value, buffers) if buffers else self._value

    def _filled(self, item: Any, buffers: Sequence[bytearray]) -> Any:
        if isinstance(item, list):
            return [self._filled(entry, buffers) for entry in item]
        if not isinstance(item, dict):
            return item
        if self._mark in item:
            index = item[self._mark]
            return _from_buffer(buffers[index], *self._kinds[index][1:])
        return {key: self._filled(entry, buffers) for key, entry in item.items()}


def _as_buffer(item: object) -> tuple[Part, str | None, Sequence[int] | None]:
    """The bytes of an array, with its dtype and shape, or of a buffer. Raises TypeError."""
    if isinstance(item, bytes | bytearray | memoryview):
        return memoryview(item).cast("B"), None, None
    numpy = sys.modules.get("numpy")  # where it was never imported there is no array
    if numpy is not None and isinstance(item, numpy.ndarray) and item.dtype.kind in "biufc":
        return memoryview(numpy.ascontiguousarray(item).reshape(-1).view(numpy.uint8)), item.dtype.str, item.shape
    raise TypeError  # orjson says of what


def _from_buffer(buffer: bytearray, dtype: str | None, shape: Sequence[int] | None) -> Any:
    if dtype is None:
        return bytes(buffer)
    import numpy as np

    return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape or ())


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as JSON: its classes by name, nearest first, its arguments and fields, its traceback as text."""
    return {
        "classes": [_name(cls) for cls in type(error).__mro__],
        "arguments": [json_of(argument) for argument in error.args],
        "fields": {name: json_of(value) for name, value in vars(error).items()},
        "text": json_of("".join(traceback.format_exception_only(error)).strip()),
        "traceback": json_of("".join(traceback.format_exception(error))),
    }


def rebuild_error(description: Mapping[str, Any], known: Collection[type[Exception]]) -> Exception:
    """The nearest known class, with its arguments and fields; else MemoryError, or RuntimeError with name and text.

    The traceback from the other process is the cause, which is for the log.
    """
    by_name = {_name(cls): cls for cls in (*known, MemoryError)}
    classes = [by_name[name] for name in description["classes"] if name in by_name]
    error: Exception
    if classes:
        # Past the constructor, whose signature need not be that of the arguments.
        error = classes[0].__new__(classes[0], *description["arguments"])
        vars(error).update(description["fields"])
    else:
        error = RuntimeError(description["text"])
    error.__cause__ = RemoteTraceback(description["traceback"])
    return error


class RemoteTraceback(Exception):
    """Where in the other process an error arose."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def json_of(value: object) -> Any:
    """The value if it is JSON, else its text without what UTF-8 cannot express."""
    try:
        orjson.dumps(value)
    except TypeError:
        return str(value).encode(errors="replace").decode()
    return value


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
