"""Bearer keys, as OpenAI's clients send them."""

import hmac
from collections.abc import Iterable, Set
from hashlib import sha256

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import Unauthorized, error_response
from gateway.middleware.asgi import header
from gateway.middleware.paths import HEALTH


class ApiKey:
    """Lets in who knows one of the keys, and puts the key's digest into the scope as `gateway.caller`.

    open_paths: for everybody. Only digests are kept and compared, each in constant time and always all of them, so
    neither memory nor timing gives a key away.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[SecretStr], open_paths: Set[str] = HEALTH) -> None:
        self.app = app
        self._open_paths = open_paths
        self._digests = [sha256(key.get_secret_value().encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            try:
                scope["gateway.caller"] = self._caller(header(scope, b"authorization"))
            except Unauthorized as refusal:
                await error_response(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _caller(self, authorization: bytes | None) -> str:
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise Unauthorized("No API key was sent. Send it in the header `Authorization: Bearer YOUR_KEY`.")
        digest = sha256(key.strip()).digest()
        known = False
        for own in self._digests:
            known |= hmac.compare_digest(own, digest)
        if not known:
            raise Unauthorized("Incorrect API key provided. Ask the operator of this server for a valid one.")
        return digest.hex()
