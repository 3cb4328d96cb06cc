"""What a request looks like upstream, and what each kind of answer becomes; without a socket."""

from collections.abc import Iterator

import httpx
import httpx2
import pytest
import respx

from proxy.errors import UnsafePath, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from proxy.spec import UpstreamSpec
from proxy.upstream import Upstream
from tests.proxy.respx_transport import RespxTransport
from tests.proxy.upstreams import connected

URL = "https://api.example.com/v1"
CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.anyio


@pytest.fixture
def upstream_server() -> Iterator[respx.Router]:
    yield respx.Router(base_url=URL)


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 403, 404, 409, 422, 429, 451, 500, 502, 503, 504, 529])
async def test_a_status_of_the_upstream_is_an_answer_and_comes_unchanged(
    upstream_server: respx.Router, status: int
) -> None:
    upstream_server.post("/chat/completions").respond(status, headers={"retry-after": "3"}, content=b'{"error": 1}')

    async with connected(URL, transport=RespxTransport(upstream_server)) as upstream:
        async with upstream.send("POST", CHAT, []) as reply:
            body = b"".join([chunk async for chunk in reply.chunks])

    assert (reply.status, body) == (status, b'{"error": 1}')
    assert (b"retry-after", b"3") in reply.headers


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
async def test_a_redirect_is_neither_followed_nor_passed_on(upstream_server: respx.Router, status: int) -> None:
    upstream_server.post("/chat/completions").respond(status, headers={"location": "http://169.254.169.254/latest"})

    async with connected(URL, transport=RespxTransport(upstream_server), api_key="upstream-key") as upstream:
        with pytest.raises(UpstreamUnreachable, match="redirect") as failure:
            async with upstream.send("POST", CHAT, []):
                pass

    assert len(upstream_server.calls) == 1
    assert "169.254" not in str(failure.value)


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (httpx2.ConnectTimeout("x"), UpstreamTimeout),
        (httpx2.ReadTimeout("x"), UpstreamTimeout),
        (httpx2.WriteTimeout("x"), UpstreamTimeout),
        (httpx2.PoolTimeout("x"), UpstreamTimeout),
        (httpx2.ConnectError("x"), UpstreamUnreachable),
        (httpx2.ReadError("x"), UpstreamUnreachable),
        (httpx2.WriteError("x"), UpstreamUnreachable),
        (httpx2.RemoteProtocolError("x"), UpstreamUnreachable),
        (httpx2.LocalProtocolError("x"), UpstreamUnreachable),
    ],
)
async def test_a_failure_is_told_in_fixed_words_with_its_cause_kept_for_the_log(
    upstream_server: respx.Router, raised: httpx2.TransportError, becomes: type[UpstreamError]
) -> None:
    upstream_server.post("/chat/completions").mock(side_effect=raised)

    async with connected(URL, transport=RespxTransport(upstream_server)) as upstream:
        with pytest.raises(becomes, match="the upstream") as failure:
            async with upstream.send("POST", CHAT, []):
                pass

    assert failure.value.__cause__ is raised
    assert "x" not in str(failure.value).split()


async def test_the_gateways_key_goes_upstream_instead_of_the_clients(upstream_server: respx.Router) -> None:
    route = upstream_server.post("/chat/completions")

    async with connected(URL, transport=RespxTransport(upstream_server), api_key="upstream-key") as upstream:
        async with upstream.send("POST", CHAT, [(b"authorization", b"Bearer client-key")]):
            pass

    assert route.calls.last.request.headers.get_list("authorization") == ["Bearer upstream-key"]


async def test_nothing_is_added_to_a_request_but_what_http_needs(upstream_server: respx.Router) -> None:
    route = upstream_server.post("/chat/completions")

    async with connected(URL, transport=RespxTransport(upstream_server)) as upstream:
        async with upstream.send("POST", CHAT, [(b"user-agent", b"OpenAI/Python")], b"{}"):
            pass

    assert dict(route.calls.last.request.headers) == {
        "host": "api.example.com",
        "content-length": "2",
        "user-agent": "OpenAI/Python",
        "accept-encoding": "identity",
    }


async def test_a_path_that_leaves_the_upstreams_address_is_refused_before_anything_is_sent(
    upstream_server: respx.Router,
) -> None:
    async with connected(URL, transport=RespxTransport(upstream_server)) as upstream:
        with pytest.raises(UnsafePath):
            async with upstream.send("GET", "/v1/%2e%2e/admin", []):
                pass

    assert not upstream_server.calls


async def test_cookies_that_one_reply_sets_are_not_sent_with_the_next_request(upstream_server: respx.Router) -> None:
    route = upstream_server.get("/models").mock(
        return_value=httpx.Response(200, headers={"set-cookie": "session=1; Path=/; Domain=api.example.com"})
    )

    async with connected(URL, transport=RespxTransport(upstream_server)) as upstream:
        for _ in range(2):
            async with upstream.send("GET", "/v1/models", []) as reply:
                assert b"set-cookie" not in dict(reply.headers)

    assert "cookie" not in route.calls.last.request.headers


@pytest.mark.parametrize("api_key", ["", "two words", "key\n", "schlüssel"])
async def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(api_key: str) -> None:
    with pytest.raises(ValueError, match="API key must be printable") as refusal:
        Upstream(UpstreamSpec(URL, api_key=api_key))

    assert not api_key or api_key not in str(refusal.value)
