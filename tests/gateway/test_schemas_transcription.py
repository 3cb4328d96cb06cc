"""Audio forms: every spelling of a field, and what may not stand together."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from gateway.schemas.common import Screen
from gateway.schemas.parameters import TRANSCRIPTION
from gateway.schemas.transcription import TranscriptionParams, TranslationParams
from gateway.schemas.transcription_form import LISTS, OBJECTS
from gateway.schemas.transcription_languages import NAMES, language_name
from handlers.errors import InvalidRequest
from handlers.transcription.types import TranscriptionRequest, VoiceActivity

Form = Sequence[tuple[str, str]]

FILE = BytesIO()
DEEP = "[" * 500 + "]" * 500  # orjson reads what it would not write


def parse(*fields: tuple[str, str], screen: Screen | None = None) -> TranscriptionParams:
    return TranscriptionParams.parse([("model", "m"), *fields], screen or Screen())


def request_for(*fields: tuple[str, str]) -> TranscriptionRequest:
    return parse(*fields).to_request(FILE)


def refusal_of(*fields: tuple[str, str]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(*fields)
    return caught.value


def test_fields_are_texts_and_empty_ones_are_absent() -> None:
    fields = [("temperature", "0.5"), ("language", ""), ("prompt", "Ada"), ("stream", "false"), ("keywords[]", "")]
    assert request_for(*fields) == TranscriptionRequest(FILE, None, "Ada", 0.5)


SPELLINGS: dict[str, Sequence[Form]] = {
    "keywords": [
        [("keywords[]", "Ada"), ("keywords[]", "Grace, too")],
        [("keywords", "Ada"), ("keywords", "Grace, too")],
        [("keywords[]", "Ada"), ("keywords", "Grace, too")],
        [("keywords", '["Ada", "Grace, too"]')],
    ],
    "chunking_strategy": [
        [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.25")],
        [("chunking_strategy[threshold]", "0.25"), ("chunking_strategy[type]", "server_vad")],
        [("chunking_strategy", '{"type": "server_vad", "threshold": 0.25}')],
        [("chunking_strategy", ' {"type":"server_vad","threshold":"0.25","prefix_padding_ms":null}')],
    ],
}


@pytest.mark.parametrize("form", SPELLINGS["keywords"])
def test_a_list_comes_in_three_spellings(form: Form) -> None:
    assert request_for(*form) == replace(request_for(), keywords=("Ada", "Grace, too"))


@pytest.mark.parametrize("form", SPELLINGS["chunking_strategy"])
def test_an_object_comes_in_two_spellings(form: Form) -> None:
    assert request_for(*form) == replace(request_for(), voice_activity=VoiceActivity(0.25))


@given(words=st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_a_list_is_the_same_list_in_every_spelling(words: list[str]) -> None:
    repeated = request_for(*(("keywords[]", word) for word in words))
    as_json = request_for(("keywords", orjson.dumps(words).decode()))
    assert repeated.keywords == as_json.keywords == tuple(words)


@given(
    threshold=st.floats(0, 1),
    padding=st.integers(0, 60_000),
    silence=st.integers(0, 60_000),
)
def test_an_object_is_the_same_object_in_both_spellings(threshold: float, padding: int, silence: int) -> None:
    fields = {"threshold": threshold, "prefix_padding_ms": padding, "silence_duration_ms": silence}
    dotted = [(f"chunking_strategy[{name}]", str(value)) for name, value in fields.items()]
    as_json = orjson.dumps({"type": "server_vad", **fields}).decode()
    expected = VoiceActivity(threshold, padding, silence)
    assert request_for(("chunking_strategy[type]", "server_vad"), *dotted).voice_activity == expected
    assert request_for(("chunking_strategy", as_json)).voice_activity == expected


NAMES_OF_FIELDS = st.sampled_from([*TRANSCRIPTION, "colour"])
SPELLED = st.builds("{}{}".format, NAMES_OF_FIELDS, st.sampled_from(["", "[]", "[type]", "[0]", "[", "[a][b]"]))
VALUES = (
    st.sampled_from(["auto", "json", "word", "logprobs", "true", "null", "[]", "{}", '["word"]', "[1]"]) | st.text()
)


@given(form=st.lists(st.tuples(SPELLED, VALUES), max_size=4))
def test_any_form_is_read_or_refused_with_the_name_of_a_field(form: Form) -> None:
    try:
        parse(*form)
    except InvalidRequest as refusal:
        assert refusal.param is not None
        assert refusal.param.startswith(tuple(TRANSCRIPTION))


ONCE = [name for name in TRANSCRIPTION if name not in {"file", "model"} | LISTS | OBJECTS]


@pytest.mark.parametrize("name", ["model", *ONCE])
def test_what_is_one_value_may_not_come_twice_nor_as_a_list(name: str) -> None:
    # The model is in the form already.
    twice = refusal_of((name, "a"), *[(name, "a")] * (name != "model"))
    assert (twice.param, twice.message) == (name, f"'{name}' was sent 2 times. Send it once.")
    if name != "model":
        assert refusal_of((f"{name}[]", "a")).message.endswith(f"Send it as '{name}'.")


def test_of_an_unknown_field_any_number_is_ignored_and_reported() -> None:
    screen = Screen()
    parse(("colour", "red"), ("colour[]", "blue"), ("a[b][c]", ""), ("d[e][f]", "g"), screen=screen)
    assert screen.headers() == {"x-ignored-params": "colour,d[e][f]"}


def test_an_unknown_setting_may_be_nested_deeply() -> None:
    screen = Screen()
    parse(("chunking_strategy", f'{{"type": "server_vad", "colour": {DEEP}}}'), screen=screen)
    assert screen.headers() == {"x-ignored-params": "chunking_strategy.colour"}


def test_an_unknown_setting_of_an_object_is_ignored_and_reported_or_refused() -> None:
    form = [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[colour]", "red")]
    screen = Screen()
    parse(*form, screen=screen)
    assert screen.headers() == {"x-ignored-params": "chunking_strategy.colour"}
    with pytest.raises(InvalidRequest, match="Unknown parameter: 'chunking_strategy.colour'"):
        parse(*form, screen=Screen(strict=True))


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("temperature", "1.5", "temperature"),
        ("temperature", "warm", "temperature"),
        ("temperature", "nan", "temperature"),
        ("language", "e" * 33, "language"),
        ("languages", '["en", 1]', "languages[1]"),
        ("languages[]", "e" * 33, "languages[0]"),
        ("languages[en]", "en", "languages"),
        ("keywords", orjson.dumps(["a"] * 129).decode(), "keywords"),
        ("response_format", "ass", "response_format"),
        ("response_format", "diarized_json", "response_format"),
        ("stream", "perhaps", "stream"),
        ("include[]", "segments", "include[0]"),
        ("include", '{"logprobs": true}', "include[0]"),
        ("timestamp_granularities[]", "letter", "timestamp_granularities[0]"),
        ("chunking_strategy", "manual", "chunking_strategy"),
        ("chunking_strategy", "[]", "chunking_strategy"),
        ("chunking_strategy[]", "auto", "chunking_strategy"),
        ("chunking_strategy[type]", "manual", "chunking_strategy.type"),
        ("chunking_strategy[threshold]", "0.5", "chunking_strategy.type"),
        ("chunking_strategy", '{"type": "server_vad", "threshold": 2}', "chunking_strategy.threshold"),
        ("chunking_strategy", '{"type": "server_vad", "threshold": true}', "chunking_strategy.threshold"),
        ("chunking_strategy", '{"type": "server_vad", "prefix_padding_ms": -1}', "chunking_strategy.prefix_padding_ms"),
        ("chunking_strategy", f'{{"type": "server_vad", "threshold": {DEEP}}}', "chunking_strategy.threshold"),
        ("keywords", DEEP, "keywords[0]"),
        ("known_speaker_names[]", "Ada", "known_speaker_names"),
        ("known_speaker_references[]", "data:,", "known_speaker_references"),
        ("file", "RIFF", "file"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, value: str, param: str) -> None:
    assert refusal_of((name, value)).param == param


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([("response_format", "ass")], "'json', 'text', 'srt', 'verbose_json' or 'vtt'"),
        ([("response_format", "diarized_json")], "Speakers are not told apart.*'verbose_json'"),
        ([("chunking_strategy", "manual")], "must be 'auto' or an object"),
        ([("chunking_strategy", "auto"), ("chunking_strategy[type]", "server_vad")], "came in two spellings"),
        ([("chunking_strategy[type]", "server_vad")] * 2, "'chunking_strategy.type' was sent 2 times"),
        ([("timestamp_granularities[]", "word")], "Only 'verbose_json' has a place for words"),
        ([("include[]", "logprobs"), ("response_format", "text")], "Only 'json' has a place for 'logprobs'"),
        ([("include[]", "logprobs"), ("response_format", "verbose_json")], "Only 'json' has a place for 'logprobs'"),
        ([("stream", "true"), ("response_format", "srt")], "A stream has no place for what 'srt' has"),
        ([("language", "en"), ("languages[]", "de")], "Send one of the two"),
    ],
)
def test_a_refusal_says_the_way_out(form: Form, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse(*form)


@pytest.mark.parametrize("name", ["stream", "chunking_strategy"])
def test_null_in_writing_is_absent_where_openai_has_null(name: str) -> None:
    assert parse((name, "null")) == parse()


@pytest.mark.parametrize("value", ["auto", '"auto"'])
def test_auto_is_how_the_audio_is_cut_anyway(value: str) -> None:
    assert parse(("chunking_strategy", value)) == parse()


@pytest.mark.parametrize("name", ["timestamp_granularities", "keywords", "known_speaker_names"])
def test_an_empty_list_is_absent(name: str) -> None:
    assert parse((name, "[]")) == parse()


def test_a_keyword_may_have_brackets() -> None:
    assert request_for(("keywords", "[laughs]")).keywords == ("[laughs]",)
    assert request_for(("keywords[]", '["Ada"]')).keywords == ('["Ada"]',)


def test_a_translation_takes_what_asks_for_nothing_special() -> None:
    form = [
        ("model", "m"),
        ("stream", "false"),
        ("chunking_strategy", "auto"),
        ("timestamp_granularities[]", "segment"),
    ]
    assert TranslationParams.parse(form, Screen(strict=True)) == TranslationParams(model="m")


def test_languages_have_the_names_that_whisper_gives_them() -> None:
    assert NAMES == LANGUAGES
    assert [language_name(code) for code in ("de", "tlh", None)] == ["german", "tlh", ""]
