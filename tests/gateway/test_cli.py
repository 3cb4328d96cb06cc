"""The command: its help, its errors in one line, and a real process that serves."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway import doctor
from gateway.cli import app
from gateway.settings import VARIABLES, Settings
from handlers.errors import SourceError

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds after which a process that hangs fails the test


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine that runs the tests. Programs find the packages though nothing may be installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GATEWAY_MODELS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A file with one model that is here and one that is not."""
    (tmp_path / "here").mkdir()
    file = tmp_path / "models.toml"
    file.write_text(
        '[[models]]\nid = "present"\ntask = "chat"\nsource = "dir:here"\naliases = ["gpt-4o"]\n'
        '[[models]]\nid = "absent"\ntask = "embeddings"\nsource = "dir:gone"\n'
    )
    return str(file)


def gateway(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def plain(text: str) -> str:
    """Without the colours and frames that rich draws."""
    return re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", text)


def test_help_names_the_commands_and_where_to_start() -> None:
    result = gateway("--help")

    assert result.exit_code == 0
    text = plain(result.output)
    for word in ("serve", "pull", "doctor", "--version", "env.example", "Start with `gateway serve`"):
        assert word in text


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", ["--host", "--port", "--models", "--log-level", "GATEWAY_PORT", "gateway serve --models none"]),
        ("pull", ["--list", "--tests", "--models", "gateway pull whisper-1"]),
        ("doctor", ["--models", "say what to do where it cannot"]),
    ],
)
def test_help_of_a_command_shows_its_options_and_examples(command: str, words: list[str]) -> None:
    text = plain(gateway(command, "--help").output)

    for word in words:
        assert word in text


def test_help_as_a_program_is_quick_because_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['gateway', '--help']\n"
        "from gateway.cli import main\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'transformers', 'pydantic', 'uvicorn', 'httpx2'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT, check=True)

    assert ended.stdout.splitlines()[-1] == "set()"


def test_the_package_is_a_program() -> None:
    ended = subprocess.run([sys.executable, "-m", "gateway", "--help"], capture_output=True, text=True, timeout=TIMEOUT)

    assert ended.returncode == 0
    assert "serve" in ended.stdout and ended.stderr == ""


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.version_of", lambda name: f"1.2.3 of {name}")

    assert gateway("--version").output == "1.2.3 of openai-inference-gateway\n"


@pytest.mark.parametrize("command", ["serve", "pull", "doctor"])
def test_mistakes_in_the_settings_are_one_line_each(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "x")
    monkeypatch.setenv("GATEWAY_API_KEYS", "two words")

    result = gateway(command)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert [line.split(": must")[0] for line in result.stderr.splitlines()] == [
        "error: GATEWAY_PORT",
        "error: GATEWAY_API_KEYS",
    ]


def test_an_option_stands_in_for_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9000")

    result = gateway("serve", "--port", "70000")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: GATEWAY_PORT: must be a port number")
    assert "70000" in result.stderr


def test_pull_lists_what_is_here_and_what_is_missing(models: str, tmp_path: Path) -> None:
    result = gateway("pull", "--models", models, "--list")

    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()] == [
        ["present", "chat", "here", f"dir:{tmp_path}/here"],
        ["absent", "embeddings", "missing", f"dir:{tmp_path}/gone"],
    ]


def test_pull_takes_the_models_that_are_named(models: str) -> None:
    result = gateway("pull", "--models", models, "gpt-4o")

    assert result.exit_code == 0
    assert result.output == "present: is here\n"


def test_pull_of_a_source_that_cannot_be_had_is_one_line(models: str, tmp_path: Path) -> None:
    result = gateway("pull", "--models", models)

    assert result.exit_code == 1
    assert result.stderr == (
        f"error: dir:{tmp_path}/gone: does not exist; name the folder that holds the model's files\n"
    )


def test_pull_of_a_name_that_nobody_has_names_those_there_are(models: str) -> None:
    result = gateway("pull", "--models", models, "gpt-5")

    assert result.exit_code == 2
    assert "no model is named 'gpt-5'; there is present, absent" in plain(result.stderr)


def test_pull_for_the_tests_also_fetches_the_recordings(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch_all(sources: Mapping[str, str], settings: Settings, console: object) -> dict[str, Path]:
        fetched.extend(sources)
        return dict.fromkeys(sources, settings.models_dir)

    monkeypatch.setattr("gateway.pull.fetch_all", fetch_all)

    assert gateway("pull", "--models", models, "--tests").exit_code == 0
    assert fetched == ["present", "absent", "speech samples"]


@pytest.fixture
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` in this process must leave its logging and environment as they are."""
    monkeypatch.setattr("gateway.telemetry.logging.configure", lambda *_, **__: None)
    monkeypatch.setattr("gateway.server.set_library_defaults", lambda *_: None)


@pytest.mark.usefixtures("unchanged_process")
def test_serve_fetches_what_is_missing_before_it_loads_anything(models: str) -> None:
    result = gateway("serve", "--models", models, "--port", "0")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: dir:")


@pytest.mark.usefixtures("unchanged_process")
def test_serve_on_a_port_in_use_is_one_line(models: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = gateway("serve", "--models", models, "--port", str(other.getsockname()[1]))

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "another program has it" in result.stderr


def test_serve_says_why_it_had_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli._serve", lambda settings: "model x cannot be loaded; do y")
    monkeypatch.setattr("gateway.server.leave", sys.exit)

    result = gateway("serve")

    assert (result.exit_code, result.stderr) == (1, "error: model x cannot be loaded; do y\n")


@pytest.mark.parametrize(("status", "code"), [(doctor.Status.WARN, 0), (doctor.Status.FAIL, 1)])
def test_doctor_shows_every_finding_and_fails_with_the_worst(
    status: doctor.Status, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        doctor.Check("python", doctor.Status.OK, "3.11"),
        doctor.Check("disk", status, "full", "make room"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda settings: checks)

    result = gateway("doctor")

    assert result.exit_code == code
    assert result.output.splitlines() == [
        "ok    python  3.11",
        f"{status.value}  disk    full",
        "              make room",
    ]


def test_source_errors_have_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SourceError("hub:a/b@main: the hub gave no answer; use dir:")

    monkeypatch.setattr("gateway.cli._pull", fail)

    result = gateway("pull")

    assert (result.exit_code, result.output) == (1, "error: hub:a/b@main: the hub gave no answer; use dir:\n")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`gateway serve` with nothing but an upstream, which nobody asks anything."""
    environment = {**os.environ, "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/v1", "GATEWAY_API_KEYS": "hush"}
    command = [sys.executable, "-m", "gateway", "serve", "--models", "none", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as running:
        yield running
        running.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_server_says_when_it_is_ready_and_ends_at_a_signal(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    ready, curl = _lines(process, "Ready: ", "  curl ")
    port = int(ready.split(":")[3].split("/")[0])
    socket.create_connection(("127.0.0.1", port)).close()

    process.send_signal(number)
    _, log = process.communicate(timeout=TIMEOUT)

    assert process.returncode == 0
    assert curl.startswith(f"  curl http://127.0.0.1:{port}/v1/models -H")
    assert " INFO    uvicorn.error [-] Application startup complete." in log
    assert "Traceback" not in log and "hush" not in ready + curl + log


def _lines(process: subprocess.Popen[str], *beginnings: str) -> list[str]:
    """The next line of stdout that begins so, for each beginning in turn."""
    assert process.stdout is not None
    return [next(line for line in process.stdout if line.startswith(beginning)) for beginning in beginnings]
