"""What lives as long as the process: models, their batch loops, the upstream. Opened and closed here only."""

import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import anyio
from starlette.applications import Starlette

from gateway.settings import Settings
from gateway.state import State
from gateway.telemetry.metrics import Metrics
from handlers.errors import ModelLoadError, SourceError
from handlers.registry import Registry
from proxy.images import ImageFetcher
from proxy.upstream import Upstream
from proxy.upstreams import Upstreams

logger = logging.getLogger(__name__)

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[State]]
OnReady = Callable[[Registry], None]
OnFailure = Callable[[str], None]


def stop_process(reason: str) -> None:
    """End the server the orderly way. When a task of the lifespan dies, uvicorn would go on serving without it."""
    logger.critical("stopping: %s", reason)
    signal.raise_signal(signal.SIGTERM)


def lifespan_of(
    settings: Settings,
    registry: Registry,
    metrics: Metrics,
    *,
    on_ready: OnReady,
    on_failure: OnFailure = stop_process,
) -> Lifespan:
    """The lifespan of one application.

    Requests are answered at once and models load behind them (503 until a model is warm), so that liveness probes and
    Ctrl-C work meanwhile.
    on_ready: called once, when all models are warm. on_failure: called with one line when a model cannot be had or a
    batch loop dies; it must end the process.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        upstreams = _open_upstreams(settings, metrics)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_serve_models, registry, partial(on_ready, registry), on_failure)
                if upstreams is not None:
                    tasks.start_soon(upstreams.watch)
                yield State(
                    settings=settings,
                    registry=registry,
                    metrics=metrics,
                    upstreams=upstreams,
                    images=image_fetcher(settings),
                )
                with anyio.move_on_after(settings.drain_timeout):
                    await registry.drain()
                tasks.cancel_scope.cancel()
        finally:
            if upstreams is not None:
                await upstreams.aclose()

    return lifespan


async def _serve_models(registry: Registry, on_ready: Callable[[], None], on_failure: OnFailure) -> None:
    try:
        await registry.serve(on_ready)
    except* (ModelLoadError, SourceError) as failed:
        on_failure(str(failed.exceptions[0]))
    except* Exception as failed:
        logger.exception("a model's task died", exc_info=failed)
        on_failure("a model's task died; the log has the traceback")


def _open_upstreams(settings: Settings, metrics: Metrics) -> Upstreams | None:
    specs = settings.upstream_specs()
    if not specs:
        return None
    upstreams = Upstreams([Upstream(spec) for spec in specs], metrics.upstreams)
    metrics.upstreams.breakers = upstreams.states
    return upstreams


def image_fetcher(settings: Settings) -> ImageFetcher | None:
    """None where no host is allowed: then nothing is ever fetched."""
    if not settings.image_hosts:
        return None
    return ImageFetcher(settings.image_hosts, max_bytes=settings.max_image_bytes, timeout=settings.image_timeout)
