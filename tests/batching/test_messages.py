"""What travels between a ProcessWorker and its process."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.messages import (
    LENGTH_BYTES,
    Head,
    MessageTooLarge,
    Part,
    describe_error,
    head_length,
    pack,
    rebuild_error,
)
from tests.batching.fakes import thorough

LIMIT = 1 << 20


def received(parts: list[Part] | Any, limit: int = LIMIT) -> Any:
    head, *buffers = parts
    length = head_length(bytes(head[:LENGTH_BYTES]), limit)
    assert length == len(head) - LENGTH_BYTES
    incoming = Head(bytes(head[LENGTH_BYTES:]), limit)
    assert incoming.sizes == [len(buffer) for buffer in buffers]
    return incoming.value([bytearray(buffer) for buffer in buffers])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@settings(thorough, max_examples=100)
@given(json_values)
def test_json_and_bytes_come_out_as_they_went_in(value: Any) -> None:
    assert received(pack(value, LIMIT)) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.float64).reshape(2, 3).T,
        np.arange(10, dtype=np.int16)[::-2],
        np.array(3.5, np.float16),
        np.zeros((0, 4), np.uint8),
        np.array([True, False]),
        np.array([1, 2], ">i4"),
        np.array([np.nan, np.inf], np.complex64),
    ],
)
def test_an_array_keeps_its_numbers_shape_and_dtype(array: np.ndarray[Any, Any]) -> None:
    back = received(pack({"deep": [{"er": array}]}, LIMIT))["deep"][0]["er"]
    np.testing.assert_array_equal(back, array)
    assert (back.shape, back.dtype, back.flags.writeable) == (array.shape, array.dtype, True)


def test_an_array_is_not_copied_on_its_way_out() -> None:
    array = np.zeros(1000, np.float32)
    assert np.shares_memory(np.asarray(pack(array, LIMIT)[1]), array)


def test_a_dataclass_becomes_an_object() -> None:
    @dataclass
    class Word:
        text: str
        span: tuple[float, float]

    assert received(pack([Word("a", (0.0, 1.5))], LIMIT)) == [{"text": "a", "span": [0.0, 1.5]}]


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {1, 2}, np.array([object()]), np.zeros(2, "i4,f4"), 2**70, "\udc80"]
)
def test_what_is_neither_json_nor_numbers_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        pack([value], LIMIT)


def test_a_message_over_the_limit_is_refused_on_both_sides() -> None:
    parts = pack(bytes(900), LIMIT)
    with pytest.raises(MessageTooLarge, match="over the limit of 900"):
        pack(bytes(900), 900)
    with pytest.raises(MessageTooLarge):
        received(parts, 900)
    with pytest.raises(MessageTooLarge):
        received(parts, 10)
    assert received(parts) == bytes(900)


class Known(Exception):
    def __init__(self, message: str, param: str, *, code: int) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Derived(Known):
    pass


def carried(error: Exception, *known: type[Exception]) -> Exception:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 - any
        return rebuild_error(orjson.loads(orjson.dumps(describe_error(raised))), known)


def test_a_known_error_keeps_its_class_arguments_and_fields() -> None:
    back = carried(Known("no", "file", code=3), Known)
    assert (type(back), str(back), vars(back)) == (Known, "no", {"param": "file", "code": 3})


def test_of_several_known_classes_the_nearest_is_taken() -> None:
    assert type(carried(Derived("no", "file", code=3), Known)) is Known
    assert type(carried(Derived("no", "file", code=3), Known, Derived)) is Derived


def test_out_of_memory_stays_what_it_is_and_the_rest_is_a_runtime_error() -> None:
    assert type(carried(MemoryError())) is MemoryError
    back = carried(KeyError("x"))
    assert (type(back), str(back)) == (RuntimeError, "KeyError: 'x'")


def test_the_traceback_is_the_cause_and_no_part_of_the_text() -> None:
    back = carried(ValueError("no"))
    assert "in carried" in str(back.__cause__)
    assert "in carried" not in str(back)


def test_arguments_that_are_no_json_come_as_text() -> None:
    assert carried(LookupError(object, "\udc80"), LookupError).args == ("<class 'object'>", "?")
