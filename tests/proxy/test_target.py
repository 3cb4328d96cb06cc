import pytest

from proxy.errors import UnsafePath
from proxy.target import base_url, join, path_of

BASE = base_url("https://api.example.com/openai/v1")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/v1/models/org%2Fname", "/openai/v1/models/org%2Fname"),
        ("/v1/models/ft:gpt-4o:acme::id@1", "/openai/v1/models/ft:gpt-4o:acme::id@1"),
        ("/v1/files/file-1/content?after=a&limit=2", "/openai/v1/files/file-1/content?after=a&limit=2"),
        ("/v1/models?url=https%3A%2F%2Fevil.example//..", "/openai/v1/models?url=https%3A%2F%2Fevil.example//.."),
        ("/v1/...", "/openai/v1/..."),
    ],
)
@pytest.mark.parametrize("base", ["https://api.example.com/openai/v1", "https://api.example.com/openai/v1/"])
def test_only_what_lies_below_v1_is_joined_to_the_upstreams_address(base: str, path: str, target: str) -> None:
    url = join(base_url(base), path)

    assert (url.scheme, url.host, url.port) == ("https", "api.example.com", None)
    assert url.raw_path.decode() == target


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v2/models",
        "/v1beta/models",
        "/admin",
        "//evil.example/v1/models",
        "http://evil.example/v1/models",
        "@evil.example/v1/models",
        "/%76%31/models",
        "/v1@evil.example/models",
        "/v1//evil.example",
        "/v1/models//",
        "/v1/../admin",
        "/v1/models/../../admin",
        "/v1/./models",
        "/v1/..",
        "/v1/%2e%2e/admin",
        "/v1/.%2E/admin",
        "/v1/%2e%2e%2fadmin",
        "/v1/models%2f..%2f..%2fadmin",
        "/v1/%252e%252e/admin",
        "/v1/..%255c/admin",
        "/v1/..;/admin",
        "/v1/..\\admin",
        "/v1/%5c..%5cadmin",
        "/v1/models%00",
        "/v1/models%0d%0aHost:%20evil.example",
        "/v1/models%0a",
        "/v1/models\n",
        "/v1/mod els",
        "/v1/models#fragment",
        "/v1/models%23fragment",
        "/v1/models%3Fquery",
        "/v1/models%zz",
        "/v1/mod\xe8les",
        "/v1/%e2%80%a6/models",
        "/v1/models?a=1#fragment",
        "/v1/models?a=\r\nHost:evil.example",
        "/v1/models?a=\xff",
    ],
)
def test_a_path_that_could_leave_the_upstreams_address_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        join(BASE, path)


@pytest.mark.parametrize("path", ["/v1/models?a=" + "x" * 8_192, "/v1/" + "x" * 8_192])
def test_a_path_longer_than_servers_take_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        join(BASE, path)


@pytest.mark.parametrize(
    ("query", "path"), [(b"", "/v1/models/org%2Fname"), (b"limit=2", "/v1/models/org%2Fname?limit=2")]
)
def test_the_path_of_a_request_is_taken_as_the_client_encoded_it(query: bytes, path: str) -> None:
    scope = {"path": "/v1/models/org/name", "raw_path": b"/v1/models/org%2Fname", "query_string": query}

    assert path_of(scope) == path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("api.example.com/v1", "must begin with http:// or https://"),
        ("ftp://api.example.com/v1", "must begin with http:// or https://"),
        ("https:///v1", "must begin with http:// or https:// and a host"),
        ("https://api.example.com:port/v1", "is not a URL"),
        ("https://user:secret@api.example.com/v1", "user name or password"),
        ("https://api.example.com/v1?api-version=1", "must end with its path"),
        ("https://api.example.com/v1#top", "must end with its path"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_its_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        base_url(text)

    assert "secret" not in str(refusal.value)
