"""Images that requests name by address, fetched from hosts that the operator allows and from no place inside.

What an address means is decided once: the name that is checked against the list is the name that is looked up, what is
found is checked where the connection is made, and the connection goes there, so that DNS rebinding finds no second
look-up. TLS and the Host header keep the name. Each redirect goes through the same door.
"""

import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import httpcore2
import httpx2

from proxy.addresses import HTTPS, allowed_host, is_public

MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
MAX_REDIRECTS = 3
MAX_AT_ONCE = 8  # requests whose images are being fetched
MAX_ADDRESSES = 4  # of a host that are tried

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ACCEPTED = [(b"Accept", b", ".join(sorted(kind.encode() for kind in MEDIA_TYPES))), (b"Accept-Encoding", b"identity")]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class ImageRefused(Exception):
    """An image that is not, or cannot be, fetched. The text is fit to be shown to a client, and names no address.

    index: which of those asked for.
    """

    def __init__(self, text: str, index: int = 0) -> None:
        super().__init__(text)
        self.index = index


class ImageTooLarge(ImageRefused):
    """It has more bytes than may be taken."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system finds them. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class ImageFetcher:
    """hosts: entries as `allowed_host` takes them. max_bytes: of all images of a request. timeout: seconds for them.

    resolve, backend: how names are looked up, and connections made.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        timeout: float,
        resolve: Resolve = resolve,
        backend: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._hosts = [allowed_host(entry) for entry in hosts]
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._backend = _CheckedBackend(resolve, backend or httpcore2.AnyIOBackend())
        self._tls = httpx2.create_ssl_context(trust_env=False)
        self._places = anyio.CapacityLimiter(MAX_AT_ONCE)

    async def fetch(self, urls: Sequence[str]) -> list[tuple[str, bytes]]:
        """Media type and bytes of each. Cancelling it closes the connection. Raises ImageRefused."""
        fetched: list[tuple[str, bytes]] = []
        try:
            with anyio.fail_after(self._timeout):
                async with self._places, self._pool() as pool:
                    session = _Session(pool, self._check, self._max_bytes)
                    for url in urls:
                        fetched.append(await session.fetch(url))
        except ImageRefused as refusal:
            refusal.index = len(fetched)
            raise
        except TimeoutError as error:
            raise ImageRefused(f"it could not be fetched within {self._timeout:g} seconds", len(fetched)) from error
        return fetched

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=1,
            max_keepalive_connections=0,
            http1=True,
            http2=False,
            network_backend=self._backend,
        )

    def _check(self, text: str) -> httpx2.URL:
        """The parsed address, if it may be asked. Raises ImageRefused."""
        try:
            url = httpx2.URL(text)
        except (httpx2.InvalidURL, ValueError) as error:
            raise ImageRefused("it is not a URL") from error
        if url.scheme != "https":
            raise ImageRefused("only https addresses are fetched")
        if url.userinfo:
            raise ImageRefused("an address with a user name or password is not fetched")
        host, port = url.raw_host.decode("ascii").lower(), url.port or HTTPS
        if not any(entry.allows(host, port) for entry in self._hosts):
            raise ImageRefused("its host is not one that images are fetched from")
        return url


class _Session:
    """The images of one request."""

    def __init__(self, pool: httpcore2.AsyncConnectionPool, check: Callable[[str], httpx2.URL], max_bytes: int) -> None:
        self._pool = pool
        self._check = check
        self._left = max_bytes

    async def fetch(self, url: str) -> tuple[str, bytes]:
        """Media type and bytes. Raises ImageRefused; cancelling it closes the connection."""
        try:
            for _ in range(MAX_REDIRECTS + 1):
                target = self._check(url)
                async with self._pool.stream("GET", _as_core(target), headers=_headers(target)) as response:
                    if response.status not in _REDIRECTS:
                        return await self._read(response)
                    url = _location(target, response)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            raise ImageRefused("its host cannot be reached, or does not answer as it should") from error
        raise ImageRefused(f"it is redirected more than {MAX_REDIRECTS} times")

    async def _read(self, response: httpcore2.Response) -> tuple[str, bytes]:
        if response.status != 200:
            raise ImageRefused(f"its host answered with status {response.status}")
        media_type = _header(response, b"content-type").partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES:
            raise ImageRefused("what is there is not a PNG, JPEG, WebP or GIF image")
        if _header(response, b"content-encoding") not in ("", "identity"):
            raise ImageRefused("its host sends it compressed, though asked not to")
        content = bytearray()
        async for piece in response.aiter_stream():
            if len(piece) > self._left:
                raise ImageTooLarge("it has more bytes than images may be fetched with")
            self._left -= len(piece)
            content += piece
        return media_type, bytes(content)


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to no address that has not been found public, and looks each name up once a connection."""

    def __init__(self, resolve: Resolve, backend: httpcore2.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise ImageRefused("its host is not on the public internet")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        raise httpcore2.ConnectError


def _as_core(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=b"https", host=url.raw_host, port=url.port, target=url.raw_path)


def _headers(url: httpx2.URL) -> list[tuple[bytes, bytes]]:
    return [(b"Host", url.netloc), *_ACCEPTED]


def _location(url: httpx2.URL, response: httpcore2.Response) -> str:
    try:
        return str(url.join(_header(response, b"location")))
    except (httpx2.InvalidURL, ValueError) as error:
        raise ImageRefused("it is redirected to what is not a URL") from error


def _header(response: httpcore2.Response, name: bytes) -> str:
    """Of several, the first; "" if there is none."""
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")
