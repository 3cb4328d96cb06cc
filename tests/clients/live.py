"""Real servers on loopback for real clients: one as its users start it, others around fakes, in a thread."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx2
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import create_app
from gateway.settings import Settings
from handlers.base import Handler

# Each try is a request of a few milliseconds: what has not happened after so many never will.
_MOST_TRIES = 20_000


@dataclass(frozen=True)
class LiveServer:
    """A server as its users start it. url: the base URL of its API."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        return self.process.pid

    def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics; what is not there has not been counted yet."""
        text = httpx2.get(f"{self.url.removesuffix('/v1')}/metrics").raise_for_status().text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def completed(self, model: str) -> float:
        """Jobs of that model that have their answer: windows of recordings, sentences of texts."""
        return self.metric("gateway_jobs_total", model=model, outcome="completed")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Ask until it holds; every question is to be a request to the server."""
        assert any(condition() for _ in range(_MOST_TRIES)), "it never happened"


@contextmanager
def started_server(environ: Mapping[str, str] = MappingProxyType({}), /, **settings: str) -> Iterator[LiveServer]:
    """`gateway serve` with these settings, warm. Killed at the end if it is still there.

    environ: what else is to be in its environment. Without `models` it has the starter models.
    """
    gateway = {f"GATEWAY_{name.upper()}": value for name, value in settings.items()}
    environ = {**os.environ, **gateway, **environ}
    environ.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next((m for line in process.stdout if (m := re.search(r"Ready: (http://\S+)", line))), None)
            assert ready, f"the server ended with {process.wait()} before it was ready"
            # Nobody reads on, and a full pipe must not hold anything up.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield LiveServer(ready[1], process)
        finally:
            process.kill()


@contextmanager
def live_server(environ: Mapping[str, str] = MappingProxyType({}), /, **settings: str) -> Iterator[LiveServer]:
    """As `started_server`. Ended by its own pid, orderly or it fails."""
    with started_server(environ, **settings) as server:
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 0


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
