"""One process that serves: bound sockets, uvicorn around the app, and an end that nothing can hold up."""

import asyncio
import gc
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, MutableMapping
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from gateway.announce import ready_message
from gateway.app import create_app
from gateway.settings import Settings
from handlers.registry import Registry

# Seconds. Load balancers keep idle connections for 60; the side that closes first must not be this one, or a request
# that is just being sent is lost.
KEEP_ALIVE = 75

# Seconds from when the models stop to when uvicorn cuts the connections without a word.
ANSWERING = 1

GARBAGE_THRESHOLD = 20_000  # objects made and not let go of before the garbage collector looks at them


def run(settings: Settings, sockets: list[socket.socket], announce: Callable[[str], None]) -> str | None:
    """Serve on `sockets` until a signal comes; returns one line that says why, if something else ended it.

    announce: called with the ready message once every model is warm.
    """

    def on_ready(registry: Registry) -> None:
        _leave_what_stays_to_itself()
        server.stop_models = registry.stop
        announce(ready_message(settings, registry.models))

    def on_failure(reason: str) -> None:
        server.fail(reason)

    app = create_app(settings, on_ready=on_ready, on_failure=on_failure)
    server = Server(_uvicorn_config(app, settings), drain_timeout=settings.drain_timeout)
    try:
        server.run(sockets)
    except SystemExit:
        server.fail("the application could not be started; the log has the traceback")
    return server.failure


class Server(uvicorn.Server):
    """Ends orderly at the first signal, at once at the second.

    drain_timeout: seconds that requests in hand have to end; then the models stop, and whoever still waits is told.
    """

    def __init__(self, config: uvicorn.Config, *, drain_timeout: float) -> None:
        super().__init__(config)
        self.drain_timeout = drain_timeout
        self.failure: str | None = None
        self.stop_models: Callable[[], None] = lambda: None

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn would also raise the signal again at the end, which turns an orderly end into a killed process."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end_of_drain = asyncio.get_running_loop().call_later(self.drain_timeout, lambda: self.stop_models())
        try:
            await super().shutdown(sockets)
        finally:
            end_of_drain.cancel()


def _leave_what_stays_to_itself() -> None:
    """What is there once the models are warm stays to the end: the garbage collector need not go through it again.

    A request leaves few cycles behind, so it need not come after every 700 objects either.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def leave(code: int) -> NoReturn:
    """End the process, also while a thread loads weights or runs a batch.

    Such a thread cannot be stopped. The interpreter would wait for it or, if it is a daemon, be gone when it comes back
    from its library, which ends in an abort.
    """
    logging.shutdown()
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def set_library_defaults(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """What the model libraries read from the environment as they are imported; what is set already stays."""
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # What is served here is nobody else's business; onnxruntime tells its maker unless it is told not to.
    environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if settings.threads is not None:
        environ["OMP_NUM_THREADS"] = str(settings.threads)
        environ["NUMBA_NUM_THREADS"] = str(settings.threads)
    if settings.offline:
        environ["HF_HUB_OFFLINE"] = "1"


def _uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    # limit_concurrency stays off: uvicorn's 503 is not in OpenAI's form. Admission is the batchers' business.
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Rate limits go by address, which a client must not be able to choose.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout) + ANSWERING,
    )
