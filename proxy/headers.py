"""Which headers travel through the relay, and as what. Names are lower case in what comes back, as ASGI wants them."""

from collections.abc import Iterable, Iterator

RawHeaders = list[tuple[bytes, bytes]]

# RFC 9110, 7.6.1, with the historic Proxy-Connection: these speak of one connection, not of the message.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# What a client proves itself with is meant for this server. The organization and project name the account of its key.
CREDENTIALS = frozenset(
    {b"authorization", b"cookie", b"x-api-key", b"api-key", b"openai-organization", b"openai-project"}
)

# Who called, and from where, stays here.
CALLER_ADDRESS = frozenset(
    {
        b"forwarded",
        b"x-real-ip",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
    }
)

# Set anew for the upstream. This server has answered the client's Expect already.
REWRITTEN = frozenset({b"host", b"accept-encoding", b"expect"})

# Statements about the upstream's own host, which would be wrong or doubled under this server's name.
ABOUT_THE_UPSTREAM = frozenset({b"set-cookie", b"alt-svc", b"strict-transport-security", b"date", b"server"})
CROSS_ORIGIN = b"access-control-"


# What a client says to this server alone.
ABOUT_THE_ROUTE = frozenset({b"x-gateway-route", b"x-local-only"})
_DROPPED = CREDENTIALS | CALLER_ADDRESS | REWRITTEN | ABOUT_THE_ROUTE
# What this server says of itself; a gateway further on says it of its own.
SERVED = frozenset({b"x-served-by", b"x-served-because"})


def request_headers(
    headers: Iterable[tuple[bytes, bytes]], api_key: str | None, *, keep_credentials: bool = False
) -> RawHeaders:
    """The client's headers as the upstream may see them: without its credentials, with the gateway's own key if any.

    keep_credentials: but for `authorization`, cookies and keys stay behind then, too.

    The client's content-length stays, unless the body came chunked; then the sender counts it.
    """
    dropped = _DROPPED - {b"authorization"} if keep_credentials else _DROPPED
    kept = [(name, value) for name, value in _end_to_end(headers) if name not in dropped]
    # A compressed reply would have to be passed on as it is, whatever the client can read.
    kept.append((b"accept-encoding", b"identity"))
    if api_key is not None:
        kept.append((b"authorization", b"Bearer " + api_key.encode("ascii")))
    return kept


def response_headers(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The upstream's headers as the client may see them.

    The upstream's request id becomes `x-upstream-request-id`: `x-request-id` is the name of this server's own.
    """
    kept = [
        (name, value)
        for name, value in _end_to_end(headers)
        if name not in ABOUT_THE_UPSTREAM and name not in SERVED and not name.startswith(CROSS_ORIGIN)
    ]
    return [(b"x-upstream-request-id" if name == b"x-request-id" else name, value) for name, value in kept]


def accepts_more_events(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an event may be added to a reply with these headers: an event stream, uncompressed, of open length."""
    fields = dict(headers)
    media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return media_type == b"text/event-stream" and not fields.keys() & {b"content-encoding", b"content-length"}


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | _named_by_connection(lowered)
    if any(name == b"transfer-encoding" for name, _ in lowered):
        dropped |= {b"content-length"}  # RFC 9112, 6.3: chunked overrides a length, which may be an attack
    return ((name, value) for name, value in lowered if name not in dropped)


def _named_by_connection(headers: RawHeaders) -> set[bytes]:
    values = (value for name, value in headers if name == b"connection")
    return {option.strip().lower() for value in values for option in value.split(b",")}
