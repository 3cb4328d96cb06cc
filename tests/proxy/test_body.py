"""The name of the model in a body, and nothing else of it."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.body import with_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b'{"model":"a","x":1}', b'{"model":"b","x":1}'),
        (b' {\n"x" : {"model":"a"} , "model" :  "a" }\n', b' {\n"x" : {"model":"a"} , "model" :  "b" }\n'),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"b"}'),
        (b'{"\\u006dodel":"a"}', b'{"\\u006dodel":"b"}'),
        (b'{"model":"a","model":"c"}', b'{"model":"b","model":"b"}'),
        (
            b'{"messages":["model","a",{"model":"a"}],"model":"a"}',
            b'{"messages":["model","a",{"model":"a"}],"model":"b"}',
        ),
        (b'{"x":"model","y":"a"}', b'{"x":"model","y":"a"}'),
        (b'{"n":1.50,"model":"\xc3\xa9\\\\"}', b'{"n":1.50,"model":"b"}'),
    ],
)
def test_only_the_name_changes(body: bytes, renamed: bytes) -> None:
    assert with_model(body, "b") == renamed


def test_a_name_is_written_as_json_wants_it() -> None:
    assert orjson.loads(with_model(b'{"model":"a"}', 'x"\\\n')) == {"model": 'x"\\\n'}


@settings(max_examples=40)
@given(st.dictionaries(st.text(), JSON), st.text(), st.booleans(), st.sampled_from([None, 2]))
def test_every_other_member_stays(members: dict[str, object], name: str, ascii: bool, indent: int | None) -> None:
    body = json.dumps({**members, "model": "old"}, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")

    assert json.loads(with_model(body, "new")) == {**members, "model": "new"}
