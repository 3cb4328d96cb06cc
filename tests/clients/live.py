"""Real servers on loopback for real clients: one as its users start it, others around fakes, in a thread."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import uvicorn

from gateway.app import create_app
from gateway.settings import Settings
from handlers.base import Handler


class LiveServer(NamedTuple):
    """url: its base URL, which ends in /v1. pid: of the process that was started."""

    url: str
    pid: int


@contextmanager
def starter_server(**settings: str) -> Iterator[str]:
    """`gateway serve` with the starter models, warm; gives its base URL. Ended by its own pid, orderly or it fails."""
    with live_server(**settings) as server:
        yield server.url


@contextmanager
def live_server(environ: Mapping[str, str] = MappingProxyType({}), /, **settings: str) -> Iterator[LiveServer]:
    """`gateway serve` with these settings and the starter models, unless they name others, as `starter_server`."""
    gateway = {f"GATEWAY_{name.upper()}": value for name, value in settings.items()}
    environ = {**os.environ, **gateway, **environ}
    environ.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = next((m for line in process.stdout if (m := re.search(r"Ready: (http://\S+)", line))), None)
        assert ready, f"the server ended with {process.wait()} before it was ready"
        # Nobody reads on, and a full pipe must not hold anything up.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield LiveServer(ready[1], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


@contextmanager
def fake_server(handlers: Sequence[Handler], **settings: Any) -> Iterator[str]:
    """The whole application around the given handlers, on a real uvicorn in a thread; gives its base URL."""
    app = create_app(Settings(**{"models": "none", **settings}), handlers=handlers, on_ready=lambda _: ready.set())
    ready = threading.Event()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http="httptools", lifespan="on", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            ready.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
