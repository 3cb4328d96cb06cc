"""Fetching images: only from the hosts of the list, only over the addresses that were checked, never too much."""

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore2
import pytest

from proxy.images import MAX_AT_ONCE, MAX_REDIRECTS, ImageFetcher, ImageRefused, ImageTooLarge
from tests.clock import advance

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.215.14"
URL = "https://images.example.com/cat.png"
PNG = b"\x89PNG and so on"


def reply(body: bytes = PNG, *headers: str, status: int = 200, kind: str = "image/png") -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(to: str, status: int = 302) -> bytes:
    return reply(b"", f"Location: {to}", status=status)


class Stream(httpcore2.AsyncMockStream):
    """Notes what is asked, and for whom the certificate must be."""

    def __init__(self, pieces: list[bytes], network: "Network") -> None:
        super().__init__(pieces)
        self._network = network

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._network.requests.append(buffer.decode())

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        assert ssl_context.verify_mode is ssl.CERT_REQUIRED and ssl_context.check_hostname
        self._network.names.append(server_hostname)
        return self

    async def aclose(self) -> None:
        self._network.closed += 1
        await super().aclose()


class Network(httpcore2.AsyncNetworkBackend):
    """A resolver and the connections. answers: of each look-up. dead: addresses that cannot be reached."""

    def __init__(self, *replies: bytes | list[bytes], answers: Sequence[Sequence[str]] = (), dead: str = "") -> None:
        self.replies = list(replies)
        self.answers = list(answers)
        self.dead = dead
        self.looked_up: list[tuple[str, int]] = []
        self.connected: list[tuple[str, int]] = []
        self.names: list[str | None] = []
        self.requests: list[str] = []
        self.closed = 0
        self.stalls = False
        self.stalled = asyncio.Event()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append((host, port))
        return self.answers.pop(0) if self.answers else [PUBLIC]

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        self.connected.append((host, port))
        if host == self.dead:
            raise httpcore2.ConnectError
        if self.stalls:
            self.stalled.set()
            await asyncio.Event().wait()
        given = self.replies.pop(0)
        return Stream(given if isinstance(given, list) else [given], self)


def fetcher(network: Network, hosts: Iterable[str] = ("images.example.com",), **options: Any) -> ImageFetcher:
    options = {"max_bytes": 1000, "timeout": 10.0, **options}
    return ImageFetcher(hosts, resolve=network.resolve, backend=network, **options)


async def refusal(network: Network, *urls: str, **options: Any) -> ImageRefused:
    with pytest.raises(ImageRefused) as refused:
        await fetcher(network, **options).fetch(urls)
    assert not any(address in str(refused.value) for address in (PUBLIC, "127.0.0.1", "0x"))
    return refused.value


async def test_an_image_comes_from_the_address_that_was_checked_under_the_name_of_its_host() -> None:
    network = Network(reply())
    assert await fetcher(network).fetch([URL]) == [("image/png", PNG)]
    assert network.looked_up == [("images.example.com", 443)]
    assert network.connected == [(PUBLIC, 443)]
    assert network.names == ["images.example.com"]
    assert network.closed == 1


async def test_nothing_of_the_server_or_its_clients_is_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    network = Network(reply(PNG, "Set-Cookie: a=b"), reply())
    await fetcher(network).fetch([URL, URL])
    [_, head] = filter(None, network.requests)
    names = [line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line]
    assert sorted(names) == ["accept", "accept-encoding", "host"]
    assert "Host: images.example.com\r\n" in head and "Accept-Encoding: identity\r\n" in head


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.com/cat.png",
        "ftp://images.example.com/cat.png",
        "file:///etc/passwd",
        "//images.example.com/cat.png",
        "cat.png",
        "",
        "https://",
        "https://images.example.com:8443/cat.png",
        "https://images.example.com:99999/",
        "https://ok@images.example.com/cat.png",
        "https://images.example.com@127.0.0.1/",
        "https://images.example.com\\@127.0.0.1/",
        "https://127.0.0.1\\@images.example.com/",
        "https://127.0.0.1#@images.example.com/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::1]/",
        "https://0.0.0.0/",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/",
        "https://other.example.com/",
        "https://images.example.com.evil.net/",
        "https://ımages.example.com/",
        "https://images。example。net/",
        "https://images.example.com\r\nHost: a/",
        "https://images.example.com\x00.evil.net/",
    ],
)
async def test_an_address_that_is_not_on_the_list_is_not_even_looked_up(url: str) -> None:
    network = Network()
    await refusal(network, url)
    assert (network.looked_up, network.connected) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["0.0.0.0"], ["fd00::1"], []],
)
async def test_a_host_with_any_address_that_is_not_public_is_not_connected_to(answer: list[str]) -> None:
    network = Network(answers=[answer])
    assert "not on the public internet" in str(await refusal(network, URL))
    assert network.connected == []


async def test_what_a_name_means_later_does_not_matter() -> None:
    """DNS rebinding: the second answer would be this machine, but there is no second look-up for a connection."""
    network = Network(reply(), answers=[[PUBLIC], ["127.0.0.1"]])
    assert await fetcher(network).fetch([URL]) == [("image/png", PNG)]
    assert (len(network.looked_up), network.connected) == (1, [(PUBLIC, 443)])


async def test_a_redirect_to_a_name_that_means_another_place_by_then_is_refused() -> None:
    network = Network(redirect("/again"), answers=[[PUBLIC], ["127.0.0.1"]])
    await refusal(network, URL)
    assert network.connected == [(PUBLIC, 443)]


@pytest.mark.parametrize(
    "to",
    ["http://images.example.com/a", "https://127.0.0.1/a", "https://evil.example.net/a", "file:///etc/passwd"]
    + ["//169.254.169.254/", "https://images.example.com:22/", "https://a:b@images.example.com/", "https://[", "\\\\x"],
)
@pytest.mark.parametrize("status", [301, 307])
async def test_each_redirect_is_checked_as_the_first_address(to: str, status: int) -> None:
    network = Network(redirect(to, status), reply(status=404))
    await refusal(network, URL)
    assert {address for address, _ in network.connected} == {PUBLIC}
    assert {host for host, _ in network.looked_up} == {"images.example.com"}


async def test_a_few_redirects_are_followed_and_no_more() -> None:
    hops = [redirect(f"/{i}") for i in range(MAX_REDIRECTS)]
    network = Network(*hops, reply())
    assert await fetcher(network).fetch([URL]) == [("image/png", PNG)]
    assert len(network.connected) == MAX_REDIRECTS + 1 == network.closed
    network = Network(*hops, redirect("/last"), reply())
    assert "redirected more than 3 times" in str(await refusal(network, URL))


async def test_another_address_is_tried_where_one_is_dead() -> None:
    network = Network(reply(), answers=[["1.1.1.1", PUBLIC]], dead="1.1.1.1")
    assert await fetcher(network).fetch([URL]) == [("image/png", PNG)]
    assert "cannot be reached" in str(await refusal(Network(dead=PUBLIC), URL))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (reply(status=404), "status 404"),
        (reply(kind="text/html"), "not a PNG"),
        (reply(kind="image/svg+xml"), "not a PNG"),
        (reply(kind=""), "not a PNG"),
        (reply(PNG, "Content-Encoding: gzip"), "compressed"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "does not answer"),
        (reply()[:-3], "does not answer"),
        (b"", "does not answer"),
    ],
)
async def test_what_is_no_plain_image_is_refused(given: bytes, reason: str) -> None:
    network = Network(given)
    assert reason in str(await refusal(network, URL))
    assert network.closed == 1


async def test_bytes_are_counted_as_they_come_and_for_all_images_together() -> None:
    endless = [b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", *[b"x" * 400] * 1000]
    network = Network(endless)
    assert isinstance(await refusal(network, URL), ImageTooLarge)
    assert len(endless) > 990, "it went on reading"
    network = Network(reply(b"x" * 600), reply(b"x" * 600))
    refused = await refusal(network, URL, URL)
    assert (type(refused), refused.index) == (ImageTooLarge, 1)


async def test_time_runs_out() -> None:
    network = Network(reply())
    network.stalls = True
    fetching = asyncio.create_task(refusal(network, URL))
    await network.stalled.wait()
    await advance(10.0)
    assert "within 10 seconds" in str(await fetching)


async def test_who_is_cancelled_lets_go_of_place_and_connection() -> None:
    network = Network(reply())
    network.stalls = True
    images = fetcher(network)
    waiting = [asyncio.create_task(images.fetch([URL])) for _ in range(MAX_AT_ONCE)]
    await network.stalled.wait()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    network.stalls = False
    assert await images.fetch([URL]) == [("image/png", PNG)]
