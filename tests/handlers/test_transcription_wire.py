"""What travels between a speech model's processes and the gateway arrives as it was sent, every field of it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.limits import Limits
from batching.messages import LENGTH_BYTES, Head, pack
from handlers.spec import ModelSpec, Task
from handlers.transcription.engine import EngineFacts, Heard, Options, Window
from handlers.transcription.types import Segment, TokenLogprob, VoiceActivity, Word
from handlers.transcription.vad import Span, Speech
from handlers.transcription.windows import Cut
from handlers.transcription.wire import (
    ERRORS,
    activity_of,
    cut_of,
    facts_of,
    heard_of,
    send_cut,
    send_heard,
    send_spec,
    spec_of,
    window_of,
)
from tests.batching.fakes import thorough

T = TypeVar("T")
LIMIT = 1 << 24
often = settings(thorough, max_examples=100)

# What JSON has a word for; a number that is none becomes null (see batching.messages).
numbers = st.floats(allow_nan=False, allow_infinity=False)
VALUES: Mapping[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: numbers,
    bytes: st.binary(max_size=20),
    str: st.text(max_size=20),
    str | None: st.none() | st.text(max_size=20),
    int | None: st.none() | st.integers(0, 1 << 40),
    Sequence[int]: st.lists(st.integers(0, 60_000), max_size=5).map(tuple),
    Sequence[str]: st.lists(st.text(max_size=5), max_size=5),
    tuple[str, ...]: st.lists(st.text(max_size=5), max_size=5).map(tuple),
    tuple[int, ...] | None: st.none() | st.lists(st.integers(1, 4096), max_size=3).map(tuple),
    Mapping[str, int] | None: st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 1 << 40), max_size=3),
    Task: st.sampled_from(Task),
}


def made(cls: type[T], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[T]:
    """With something in every field; one of a kind that is new here has to be given."""
    hints = get_type_hints(cls)
    others = {name: _of(hint) for name, hint in hints.items() if name not in given}
    return st.builds(cls, **others, **given)


def _of(hint: Any) -> st.SearchStrategy[Any]:
    return VALUES[hint] if hint in VALUES else st.from_type(hint)


def travelled(value: object) -> Any:
    """As it is on the other side of the socket."""
    head, *buffers = pack(value, LIMIT)
    return Head(bytes(head)[LENGTH_BYTES:], LIMIT).value([bytearray(buffer) for buffer in buffers])


def tupled(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


samples = st.lists(st.floats(-1, 1, width=32), max_size=50).map(lambda values: np.array(values, np.float32))
segments = made(Segment, words=tupled(made(Word)), logprobs=tupled(made(TokenLogprob)))
specs = made(ModelSpec, limits=st.just(Limits()))


@often
@given(specs)
def test_a_model_without_its_limits(spec: ModelSpec) -> None:
    assert spec_of(travelled(send_spec(spec))) == spec


@often
@given(made(EngineFacts))
def test_what_an_engine_can_do(facts: EngineFacts) -> None:
    assert facts_of(travelled(facts)) == facts


@often
@given(made(VoiceActivity))
def test_where_speech_begins_and_ends(activity: VoiceActivity) -> None:
    assert activity_of(travelled(activity)) == activity


@often
@given(samples, made(Options))
def test_a_window_and_how_it_is_read(sound: Any, options: Options) -> None:
    window = window_of(travelled(Window(sound, options)))
    assert window.options == options
    assert window.samples.dtype == np.float32
    np.testing.assert_array_equal(window.samples, sound)


@often
@given(made(Heard, segments=st.lists(segments, max_size=3)))
def test_what_was_heard(heard: Heard) -> None:
    assert heard_of(travelled(send_heard(heard))) == heard


@pytest.mark.parametrize("kind", ERRORS)
@often
@given(message=st.text(max_size=50), param=st.none() | st.text(max_size=5), code=st.none() | st.text(max_size=5))
def test_why_a_window_or_a_file_was_refused(
    kind: type[Exception], message: str, param: str | None, code: str | None
) -> None:
    refused = kind(message, param, code) if hasattr(kind("x"), "param") else kind(message)
    back = heard_of(travelled(send_heard(refused)))
    assert isinstance(back, kind)
    assert (type(back), back.args, vars(back)) == (kind, refused.args, vars(refused))


@often
@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 30)), min_size=1, max_size=4))
def test_the_stretches_of_speech_in_a_window(stretches: Sequence[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    cut = Cut(
        [
            Speech(Span(start, start + length), rng.standard_normal(length).astype(np.float32))
            for start, length in stretches
        ]
    )
    back = cut_of(travelled(send_cut(cut)))
    np.testing.assert_array_equal(back.samples, cut.samples)
    assert back.spans == cut.spans
    assert vars(back).keys() == vars(cut).keys()
    assert back._ends == cut._ends


def test_nothing_of_a_model_but_its_limits_stays_behind() -> None:
    spec = ModelSpec("m", Task.TRANSCRIPTION, "dir:m")
    assert {field.name for field in fields(spec)} - set(send_spec(spec)) == {"limits"}
