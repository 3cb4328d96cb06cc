"""The application: routes, middleware, exception handlers, lifespan, nothing else."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route

from gateway.errors import exception_handlers
from gateway.lifespan import OnFailure, OnReady, lifespan_of, stop_process
from gateway.middleware import stack
from gateway.routes import metrics_routes, routes, upstream_routes
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from handlers import sources
from handlers.base import Handler
from handlers.chat.types import ImageLimits
from handlers.factory import create_handlers
from handlers.registry import Registry


def create_app(
    settings: Settings,
    *,
    handlers: Sequence[Handler] | None = None,
    on_ready: OnReady = lambda registry: None,
    on_failure: OnFailure = stop_process,
) -> Starlette:
    """An ASGI application that serves what the settings name, or the given handlers instead.

    on_ready: called once, when all models are warm. on_failure: called with one line when one cannot be loaded; it must
    end the process.
    """
    if handlers is None:
        handlers = create_handlers(
            settings.model_specs(),
            partial(_open_source, cache_dir=settings.models_dir, offline=settings.offline),
            max_audio_seconds=settings.max_audio_seconds,
            max_speech_characters=settings.max_speech_characters,
            image_limits=ImageLimits(
                max_bytes=settings.max_image_bytes,
                max_pixels=settings.max_image_pixels,
                max_images=settings.max_images,
            ),
        )
    registry = Registry(handlers)
    urls = _routes(settings)
    metrics = Metrics(registry, urls)
    app = Starlette(
        routes=urls,
        middleware=stack(settings, None if settings.metrics == "off" else metrics.requests),
        exception_handlers=exception_handlers,
        lifespan=lifespan_of(settings, registry, metrics, on_ready=on_ready, on_failure=on_failure),
    )
    # The redirect would lead to whatever host the client named, and take its key there.
    app.router.redirect_slashes = False
    return app


def _routes(settings: Settings) -> Sequence[Route]:
    return [
        *routes,
        *(() if settings.metrics == "off" else metrics_routes),
        *(upstream_routes if settings.upstream_specs() else ()),
    ]


def _open_source(source: str, *, cache_dir: Path, offline: bool) -> Path:
    return sources.fetch(source, cache_dir, offline=offline)
