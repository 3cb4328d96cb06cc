"""What the lifespan opens and every request sees."""

from typing import TypedDict

from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from handlers.registry import Registry
from proxy.images import ImageFetcher
from proxy.upstreams import Upstreams


class State(TypedDict):
    """upstreams: other servers, None if there are none. images: fetches them, if it may."""

    settings: Settings
    registry: Registry
    metrics: Metrics
    upstreams: Upstreams | None
    images: ImageFetcher | None
