"""The command `gateway`. What a command needs is imported when it runs, so that --help is quick."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.settings import Settings
    from handlers.spec import ModelSpec

_SERVE_EXAMPLES = """Examples:

gateway serve  —  the starter models on http://127.0.0.1:8000/v1

gateway serve --host 0.0.0.0 --port 9000  —  for other machines too; set GATEWAY_API_KEYS then

gateway serve --models models.toml  —  your own models; docs/configuration.md shows the file

GATEWAY_UPSTREAM_URL=https://api.example.com/v1 gateway serve --models none  —  pass everything on"""

_PULL_EXAMPLES = """Examples:

gateway pull  —  everything that `gateway serve` would serve

gateway pull whisper-1  —  only the model that has this name

gateway pull --list  —  what there is, and whether it is here"""

app = typer.Typer(
    name="gateway",
    no_args_is_help=True,
    add_completion=False,
    help="Serve chat, embeddings, reranking, speech-to-text and text-to-speech to any OpenAI client, from models on "
    "this machine.",
    epilog="Start with `gateway serve`. Settings come from GATEWAY_* variables and .env; env.example lists them all.",
)

Models = Annotated[
    str | None,
    typer.Option("--models", metavar="CHOICE", help="starter, none, or a TOML file of models.  (GATEWAY_MODELS)"),
]


def main() -> None:
    app()


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(version_of("openai-inference-gateway"))
    except PackageNotFoundError:
        typer.echo("unknown: this is a source tree that was not installed")
    raise typer.Exit


@app.callback()
def gateway(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The help text is the app's own."""


@app.command(epilog=_SERVE_EXAMPLES)
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.  (GATEWAY_HOST)")
    ] = None,
    port: Annotated[str | None, typer.Option(metavar="NUMBER", help="Port to listen on.  (GATEWAY_PORT)")] = None,
    models: Models = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.  (GATEWAY_LOG_LEVEL)")
    ] = None,
) -> None:
    """Serve the models, fetching first what is not here yet. Ctrl-C stops it.

    An option stands in for the variable named after it.
    """
    with _one_line_errors():
        failure = _serve(_load_settings(host=host, port=port, models=models, log_level=log_level))
    if failure:
        _complain(failure)
    from gateway.server import leave

    leave(1 if failure else 0)


@app.command(epilog=_PULL_EXAMPLES)
def pull(
    names: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Ids or aliases; all if left out.")] = None,
    models: Models = None,
    only_list: Annotated[bool, typer.Option("--list", help="Show what there is and fetch nothing.")] = False,
    tests: Annotated[bool, typer.Option("--tests", help="Fetch the speech recordings of the tests, too.")] = False,
) -> None:
    """Fetch models ahead of time, so that `gateway serve` starts at once, also offline."""
    with _one_line_errors():
        settings = _load_settings(models=models)
        specs = _choose(settings.model_specs(), names or [])
        if only_list:
            _list(specs, settings)
        else:
            _pull(specs, settings, tests)


@app.command()
def doctor(models: Models = None) -> None:
    """Check whether this machine can serve what the settings ask for, and say what to do where it cannot."""
    with _one_line_errors():
        from gateway.doctor import Status, run_checks

        checks = run_checks(_load_settings(models=models))
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{check.status:<4}  {check.name:<{width}}  {check.detail}")
        if check.way_out:
            typer.echo(f"{'':<{width + 8}}{check.way_out}")
    if any(check.status is Status.FAIL for check in checks):
        raise typer.Exit(1)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the operator can put right is said in a line each, without a traceback."""
    from gateway.listener import ListenError
    from gateway.mistakes import SettingsError
    from handlers.errors import ModelLoadError, SourceError

    try:
        yield
    except (SettingsError, ListenError, SourceError, ModelLoadError) as exc:
        _complain(str(exc))
        raise typer.Exit(1) from None


def _complain(text: str) -> None:
    for line in text.splitlines():
        typer.echo(f"error: {line}", err=True)


def _load_settings(**options: str | None) -> "Settings":
    """Options stand in for the variables they are named after."""
    from gateway.settings import Settings

    given = {f"GATEWAY_{name.upper()}": value for name, value in options.items() if value is not None}
    return Settings.load({**os.environ, **given})


def _serve(settings: "Settings") -> str | None:
    from gateway import server
    from gateway.listener import bound, listen
    from gateway.telemetry.logging import configure

    configure(settings.log_level, settings.log_format, secrets=settings.secrets())
    server.set_library_defaults(settings, os.environ)
    with bound(settings.host, settings.port) as sockets:
        settings = settings.model_copy(update={"port": sockets[0].getsockname()[1]})
        _fetch_missing(settings)
        listen(sockets)
        return server.run(settings, sockets, _announce)


def _fetch_missing(settings: "Settings") -> None:
    from rich.console import Console

    from gateway.pull import missing
    from gateway.pull import pull as fetch

    if specs := missing(settings.model_specs(), settings.models_dir):
        fetch(specs, settings, Console(stderr=True))


def _announce(message: str) -> None:
    # Not in the event loop: whoever reads stdout may be slow.
    Thread(target=typer.echo, args=(f"\n{message}\n",), daemon=True).start()


def _choose(specs: "Sequence[ModelSpec]", names: Sequence[str]) -> "Sequence[ModelSpec]":
    """The models that have these names, or all. A name that none has is a usage error."""
    by_name = {name: spec for spec in specs for name in (spec.id, *spec.aliases)}
    if unknown := [name for name in names if name not in by_name]:
        raise typer.BadParameter(f"no model is named {unknown[0]!r}; there is {', '.join(spec.id for spec in specs)}")
    chosen = {by_name[name].id for name in names} or {spec.id for spec in specs}
    return [spec for spec in specs if spec.id in chosen]


def _list(specs: "Sequence[ModelSpec]", settings: "Settings") -> None:
    from handlers.sources import is_cached, parse

    width = max((len(spec.id) for spec in specs), default=0)
    for spec in specs:
        here = all(is_cached(source, settings.models_dir) for source in spec.sources)
        state = "here" if here else "missing"
        typer.echo(f"{spec.id:<{width}}  {spec.task:<13}  {state:<7}  {parse(spec.source)}")


def _pull(specs: "Sequence[ModelSpec]", settings: "Settings", tests: bool) -> None:
    from rich.console import Console

    from gateway.pull import fetch_all
    from gateway.pull import pull as fetch
    from handlers.starter import SPEECH_SAMPLES

    console = Console()
    fetch(specs, settings, console)
    if tests:
        fetch_all({"speech samples": SPEECH_SAMPLES}, settings, console)
