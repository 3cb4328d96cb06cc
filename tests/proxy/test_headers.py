import pytest

from proxy.headers import accepts_more_events, request_headers, response_headers

IDENTITY = (b"accept-encoding", b"identity")


@pytest.mark.parametrize(
    "header",
    [
        (b"connection", b"keep-alive"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-authenticate", b"Basic"),
        (b"proxy-authorization", b"Basic Zm9v"),
        (b"proxy-connection", b"keep-alive"),
        (b"te", b"trailers"),
        (b"trailer", b"x-checksum"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"websocket"),
        (b"host", b"gateway.example.com"),
        (b"accept-encoding", b"gzip, br"),
        (b"expect", b"100-continue"),
        (b"authorization", b"Bearer client-key"),
        (b"Authorization", b"Bearer client-key"),
        (b"cookie", b"session=1"),
        (b"x-api-key", b"client-key"),
        (b"api-key", b"client-key"),
        (b"openai-organization", b"org-1"),
        (b"openai-project", b"proj-1"),
        (b"forwarded", b"for=10.0.0.1"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"x-real-ip", b"10.0.0.1"),
    ],
)
@pytest.mark.parametrize("api_key", [None, "upstream-key"])
def test_a_header_of_this_hop_or_this_client_never_goes_upstream(
    header: tuple[bytes, bytes], api_key: str | None
) -> None:
    sent = request_headers([header, (b"accept", b"*/*")], api_key)

    own_key = [] if api_key is None else [(b"authorization", b"Bearer upstream-key")]
    assert sent == [(b"accept", b"*/*"), IDENTITY, *own_key]


@pytest.mark.parametrize("connection", [b"close, X-Secret , x-other", b"x-other,x-secret"])
def test_headers_named_by_connection_stay_on_their_hop_both_ways(connection: bytes) -> None:
    headers = [(b"connection", connection), (b"x-secret", b"1"), (b"x-other", b"2"), (b"x-end", b"3")]

    assert request_headers(headers, None) == [(b"x-end", b"3"), IDENTITY]
    assert response_headers(headers) == [(b"x-end", b"3")]


def test_every_connection_header_counts_when_there_are_several() -> None:
    headers = [(b"connection", b"close"), (b"Connection", b"x-secret"), (b"x-secret", b"1")]

    assert response_headers(headers) == []


def test_other_request_headers_keep_their_order_and_repetitions() -> None:
    headers = [(b"X-Tag", b"1"), (b"content-type", b"application/json"), (b"x-tag", b"2"), (b"content-length", b"7")]

    assert request_headers(headers, None) == [
        (b"x-tag", b"1"),
        (b"content-type", b"application/json"),
        (b"x-tag", b"2"),
        (b"content-length", b"7"),
        IDENTITY,
    ]


def test_a_length_beside_chunked_framing_is_dropped_both_ways() -> None:
    headers = [(b"content-length", b"7"), (b"Transfer-Encoding", b"chunked")]

    assert request_headers(headers, None) == [IDENTITY]
    assert response_headers(headers) == []


@pytest.mark.parametrize(
    "header",
    [
        (b"Set-Cookie", b"__cf_bm=1"),
        (b"alt-svc", b'h3=":443"'),
        (b"strict-transport-security", b"max-age=1"),
        (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (b"server", b"cloudflare"),
        (b"access-control-allow-origin", b"*"),
        (b"access-control-expose-headers", b"x-request-id"),
        (b"x-served-by", b"local"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
    ],
)
def test_a_header_about_the_upstream_itself_never_reaches_the_client(header: tuple[bytes, bytes]) -> None:
    assert response_headers([header, (b"content-type", b"text/plain")]) == [(b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    "header",
    [
        (b"content-length", b"7"),
        (b"content-encoding", b"gzip"),
        (b"retry-after", b"3"),
        (b"x-ratelimit-remaining-tokens", b"12"),
        (b"www-authenticate", b"Bearer"),
        (b"openai-processing-ms", b"42"),
    ],
)
def test_a_header_about_the_reply_reaches_the_client(header: tuple[bytes, bytes]) -> None:
    assert response_headers([header]) == [header]


def test_the_upstreams_request_id_leaves_room_for_our_own() -> None:
    assert response_headers([(b"X-Request-Id", b"req_1")]) == [(b"x-upstream-request-id", b"req_1")]


@pytest.mark.parametrize(
    ("headers", "accepts"),
    [
        ([(b"content-type", b"text/event-stream")], True),
        ([(b"content-type", b"Text/Event-Stream; charset=utf-8")], True),
        ([(b"content-type", b"application/json")], False),
        ([], False),
        ([(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")], False),
        ([(b"content-type", b"text/event-stream"), (b"content-length", b"9")], False),
    ],
)
def test_an_event_can_be_added_only_to_a_plain_event_stream_of_open_length(
    headers: list[tuple[bytes, bytes]], accepts: bool
) -> None:
    assert accepts_more_events(headers) is accepts
