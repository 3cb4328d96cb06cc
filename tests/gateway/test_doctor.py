"""`gateway doctor` on machines that lack this or that; the machine is handed in."""

import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from gateway.doctor import (
    Check,
    Status,
    check_device,
    check_disk,
    check_encoders,
    check_engines,
    check_model,
    check_port,
    check_python,
    check_readable_audio,
    run_checks,
)
from gateway.settings import Settings
from handlers.spec import ModelSpec, Task

REMOTE = f"wheel:tiny-model==1.0#sha256={'a' * 64}&path=tiny_model"
CHAT = ModelSpec(id="tiny", task=Task.CHAT, source=REMOTE)
SPEECH = ModelSpec(id="voice", task=Task.SPEECH, source="package:hibari-tts")


def broken(name: str) -> ModuleType:
    raise ImportError(f"No module named {name!r}\nsecond line")


def gives(**attributes: Any) -> Callable[[str], Any]:
    """A `load` whose module has these attributes."""
    return lambda name: SimpleNamespace(**attributes)


def torch_with(*, cuda: bool = False, mps: bool = False) -> Callable[[str], Any]:
    return gives(
        cuda=SimpleNamespace(is_available=lambda: cuda, get_device_name=lambda: "Big GPU"),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        get_num_threads=lambda: 2,
    )


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_described_from_python_to_the_port(tmp_path: Path) -> None:
    checks = run_checks(Settings(models_dir=tmp_path, port=0), broken)

    names = [check.name for check in checks]
    assert names[0] == "python"
    assert names[-1] == "port 0"
    assert {"torch", "device", "audio input", "audio output", "models folder", "model whisper-tiny.en"} < set(names)
    assert all(check.way_out for check in checks if check.status is not Status.OK)


def test_a_machine_without_any_library_is_described_not_crashed_on(tmp_path: Path) -> None:
    checks = by_name(run_checks(Settings(models_dir=tmp_path, port=0), broken))

    assert checks["device"].status is Status.FAIL
    assert "torch cannot be loaded (No module named 'torch')" in checks["device"].detail
    assert checks["audio input"].status is Status.WARN
    assert checks["audio output"].status is Status.WARN
    assert "speech answers in wav, flac and pcm only" in checks["audio output"].detail


def test_a_process_that_only_forwards_needs_no_library() -> None:
    checks = run_checks(Settings(models="none", port=0), broken)

    assert [(check.name, check.status) for check in checks] == [("python", Status.OK), ("port 0", Status.OK)]


def test_an_old_python_is_refused() -> None:
    assert check_python((3, 10, 9)).status is Status.FAIL
    assert check_python((3, 11, 0)).status is Status.OK


def test_only_the_packages_of_configured_tasks_are_asked_for() -> None:
    checks = check_engines([SPEECH], lambda package: "1.0")

    assert [(check.name, check.detail) for check in checks] == [
        ("av", "1.0"),
        ("hibari-tts", "1.0"),
        ("soundfile", "1.0"),
    ]


def test_an_engine_that_is_not_installed_names_the_command() -> None:
    def version_of(package: str) -> str:
        raise PackageNotFoundError(package)

    [av, *_] = check_engines([SPEECH], version_of)

    assert av.status is Status.FAIL
    assert av.way_out.endswith("-m pip install av")


@pytest.mark.parametrize(
    ("wish", "cuda", "mps", "status", "words"),
    [
        ("auto", True, False, Status.OK, "cuda (Big GPU)"),
        ("cuda:1", True, False, Status.OK, "cuda (Big GPU)"),
        ("auto", False, True, Status.OK, "mps ("),
        ("auto", False, False, Status.WARN, "no accelerator: models run on the cpu, 2 threads"),
        ("cpu", True, False, Status.OK, "cpu, 2 threads"),
        ("cuda", False, False, Status.FAIL, "cuda is asked for and not there"),
        ("mps", True, False, Status.FAIL, "mps is asked for and not there"),
    ],
)
def test_the_device_is_said_plainly(wish: str, cuda: bool, mps: bool, status: Status, words: str) -> None:
    check = check_device(wish, [CHAT], torch_with(cuda=cuda, mps=mps))

    assert check.status is status
    assert check.detail.startswith(words)


def test_a_missing_torch_is_a_failure_only_where_a_model_needs_it() -> None:
    assert check_device("auto", [CHAT], broken).status is Status.FAIL
    assert check_device("auto", [SPEECH], broken).status is Status.WARN


def test_a_format_that_cannot_be_read_is_named() -> None:
    check = check_readable_audio(gives(available_formats=lambda: {"WAV": "", "FLAC": "", "OGG": ""}))

    assert check.status is Status.WARN
    assert check.detail == "libsndfile does not know MP3"


def test_an_encoder_that_is_missing_is_named() -> None:
    def codec(name: str, mode: str) -> None:
        if name == "libopus":
            raise ValueError(name)

    check = check_encoders(gives(Codec=codec))

    assert check.status is Status.WARN
    assert check.detail == "no encoder for opus"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_matters_only_while_a_model_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12, 10**8))

    assert check_disk(tmp_path / "not" / "made" / "yet", [CHAT]).status is Status.FAIL
    assert check_disk(tmp_path, [SPEECH]).status is Status.OK


def test_a_models_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)

    check = check_disk(tmp_path / "models", [CHAT])

    assert check.status is Status.FAIL
    assert check.detail == f"{tmp_path} cannot be written to"


def test_a_model_to_fetch_is_a_warning_online_and_a_failure_offline(tmp_path: Path) -> None:
    online = check_model(CHAT, tmp_path, offline=False)
    offline = check_model(CHAT, tmp_path, offline=True)

    assert (online.status, online.detail) == (Status.WARN, "wheel:tiny-model==1.0 is not fetched yet")
    assert (offline.status, offline.way_out) == (Status.FAIL, "run `gateway pull` online first")


def test_a_model_folder_that_is_missing_is_a_failure_that_names_it(tmp_path: Path) -> None:
    spec = ModelSpec(id="mine", task=Task.CHAT, source=f"dir:{tmp_path}/none")

    check = check_model(spec, tmp_path, offline=False)

    assert check == Check(
        "model mine",
        Status.FAIL,
        f"dir:{tmp_path}/none: does not exist",
        "name the folder that holds the model's files",
    )


def test_a_model_that_is_here_says_where(tmp_path: Path) -> None:
    spec = ModelSpec(id="mine", task=Task.CHAT, source=f"dir:{tmp_path}")

    assert check_model(spec, tmp_path, offline=True) == Check("model mine", Status.OK, str(tmp_path))


def test_a_port_in_use_is_a_failure_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = check_port("127.0.0.1", port)

    assert check.status is Status.FAIL
    assert check.detail == "cannot listen on 127.0.0.1 (Address already in use)"
    assert check_port("127.0.0.1", port).status is Status.OK


def test_a_host_that_is_not_of_this_machine_is_a_failure() -> None:
    assert check_port("192.0.2.1", 0).status is Status.FAIL
