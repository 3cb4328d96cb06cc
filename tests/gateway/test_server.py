"""How the process serves and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette

from gateway.listener import bound, listen
from gateway.server import Server, run, set_library_defaults
from gateway.settings import Settings
from handlers.registry import Registry

SETTINGS = Settings(models="none", drain_timeout=0)

OnReady = Callable[[Registry], None]
OnFailure = Callable[[str], None]


@pytest.fixture
def starts_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the application by one whose lifespan is the given function of (on_ready, on_failure)."""

    def replace(start: Callable[[OnReady, OnFailure], None]) -> None:
        def create_app(settings: Settings, *, on_ready: OnReady, on_failure: OnFailure) -> Starlette:
            @asynccontextmanager
            async def lifespan(app: Starlette) -> AsyncIterator[None]:
                start(on_ready, on_failure)
                yield

            return Starlette(lifespan=lifespan)

        monkeypatch.setattr("gateway.server.create_app", create_app)

    return replace


def serve(announce: Callable[[str], None] = lambda message: None) -> str | None:
    with bound("127.0.0.1", 0) as sockets:
        listen(sockets)
        return run(SETTINGS, sockets, announce)


def test_it_announces_when_ready_and_ends_without_a_failure_at_a_signal(starts_as: Callable[..., None]) -> None:
    def start(on_ready: OnReady, on_failure: OnFailure) -> None:
        on_ready(Registry([]))
        signal.raise_signal(signal.SIGTERM)

    starts_as(start)
    messages: list[str] = []

    assert serve(messages.append) is None
    assert messages[0].startswith("Ready: http://127.0.0.1:8000/v1")


def test_a_model_that_fails_ends_it_with_the_reason(starts_as: Callable[..., None]) -> None:
    starts_as(lambda on_ready, on_failure: on_failure("no weights"))

    assert serve() == "no weights"


def test_an_application_that_does_not_start_ends_it(starts_as: Callable[..., None]) -> None:
    def start(on_ready: OnReady, on_failure: OnFailure) -> None:
        raise ZeroDivisionError

    starts_as(start)

    assert serve() == "the application could not be started; the log has the traceback"


def test_the_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    server = Server(uvicorn.Config(Starlette(), log_config=None), drain_timeout=0)

    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit and codes == []
    server.handle_exit(signal.SIGTERM, None)
    assert codes == [128 + signal.SIGTERM]


@pytest.mark.anyio
async def test_the_models_stop_when_the_drain_is_over() -> None:
    stopped = asyncio.Event()
    server = Server(uvicorn.Config(Starlette(), log_config=None, lifespan="off"), drain_timeout=0)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.stop_models = stopped.set

    class Connection:
        def shutdown(self) -> None: ...

    connection = Connection()
    server.server_state.connections.add(connection)  # type: ignore[arg-type]
    server.servers = []
    ending = asyncio.create_task(server.shutdown())
    await stopped.wait()
    assert not ending.done()
    server.server_state.connections.clear()
    await ending


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("work", ["pass", "Event().wait()"])
def test_a_thread_that_never_ends_does_not_hold_up_the_end(work: str, daemon: bool) -> None:
    program = f"""
from threading import Event, Thread
from gateway.server import leave
Thread(target=lambda: {work.replace("pass", "None")}, daemon={daemon}).start()
print("last words", end="")
leave(3)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "last words", "")


def test_the_libraries_are_kept_quiet_but_the_users_own_choice_stays() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "true"}

    set_library_defaults(SETTINGS, environ)

    assert environ == {
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_threads_and_offline_mode_reach_the_libraries() -> None:
    environ = {"OMP_NUM_THREADS": "64"}

    set_library_defaults(Settings(models="none", threads=2, offline=True), environ)

    assert environ["OMP_NUM_THREADS"] == environ["NUMBA_NUM_THREADS"] == "2"
    assert environ["HF_HUB_OFFLINE"] == "1"


def test_a_server_that_forwards_only_never_imports_torch() -> None:
    heavy = {"numba", "torch", "transformers"}
    program = f"import sys, gateway.server, gateway.pull; print(sorted({heavy} & sys.modules.keys()))"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stdout == "[]\n"
