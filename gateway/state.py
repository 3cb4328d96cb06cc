"""What the lifespan opens and every request sees."""

from typing import TypedDict

from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from handlers.registry import Registry
from proxy.images import ImageFetcher
from proxy.upstream import Upstream


class State(TypedDict):
    """upstream: where models go that are not served here; None if there is none. images: fetches them, if it may."""

    settings: Settings
    registry: Registry
    metrics: Metrics
    upstream: Upstream | None
    images: ImageFetcher | None
