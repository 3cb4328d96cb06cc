"""The layers around the routes, each one pure ASGI class."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gateway.middleware.access_log import AccessLog
from gateway.middleware.api_key import ApiKey
from gateway.middleware.body_limit import BodyLimit
from gateway.middleware.deadline import Deadline
from gateway.middleware.error_boundary import ErrorBoundary
from gateway.middleware.paths import AUDIO_UPLOADS, HEALTH, MACHINES
from gateway.middleware.request_id import RequestId
from gateway.settings import Settings
from gateway.telemetry.requests import RequestMetrics

_FORM_OVERHEAD = 1024 * 1024  # bytes of an upload's form that are not the file: boundaries, headers, the other fields

_EXPOSED_HEADERS = [
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "x-should-retry",
    "x-ignored-params",
    "x-served-by",
    "x-served-because",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
]


def stack(settings: Settings, metrics: RequestMetrics | None = None) -> list[Middleware]:
    """Outermost first: everything is named and logged, then the cheapest refusals come first; none reads the body.

    1. RequestId      so that whatever follows can be found again
    2. AccessLog      sees the status of every reply, refusals and failures too, and counts it in `metrics`
    3. CORS           answers preflights, which carry no key, and lets browsers read errors (only with origins set)
    4. ErrorBoundary  whatever is raised below becomes a 500
    5. BodyLimit      two headers decide; closes the connection when a layer below refuses before the body is read
    6. ApiKey         (only with keys set)
    7. RateLimit      counts callers by key, so it comes after ApiKey (only with a rate set)
    8. Deadline       starts the clock of what is let in
    """
    layers = [Middleware(RequestId), Middleware(AccessLog, metrics)]
    if settings.cors_origins:
        layers.append(_cors(settings))
    layers += [Middleware(ErrorBoundary), _body_limit(settings)]
    if settings.api_keys:
        layers.append(Middleware(ApiKey, settings.api_keys, MACHINES if settings.metrics == "open" else HEALTH))
    if settings.rate_limit:
        layers.append(_rate_limit(settings.rate_limit))
    layers.append(Middleware(Deadline, settings.request_timeout, settings.body_timeout))
    return layers


def _cors(settings: Settings) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED_HEADERS,
    )


def _body_limit(settings: Settings) -> Middleware:
    uploads = dict.fromkeys(AUDIO_UPLOADS, settings.max_audio_bytes + _FORM_OVERHEAD)
    return Middleware(BodyLimit, settings.max_body_bytes, uploads)


def _rate_limit(rate: str) -> Middleware:
    # slowapi takes a tenth of a second to import, which most servers need not spend.
    from gateway.middleware.rate_limit import RateLimit

    return Middleware(RateLimit, rate)
