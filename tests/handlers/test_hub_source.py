"""The hub source on the real huggingface_hub, against a small hub on this machine."""

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from handlers.errors import SourceError
from handlers.sources import fetch, is_cached

COMMIT = "c" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 3000, "flax_model.msgpack": b"unused"}


Reply = tuple[int, dict[str, str], bytes]


def missing(code: str) -> Reply:
    return 404, {"X-Error-Code": code}, b"{}"


@dataclass
class Hub:
    """One repository, org/name, with one commit on its branch main."""

    requests: list[str] = field(default_factory=list)
    is_down: bool = False

    def answer(self, path: str) -> Reply:
        self.requests.append(path)
        if self.is_down:
            return 503, {}, b""
        match path.split("?")[0].split("/")[1:]:
            case ["api", "models", "org", "name", "revision", "main"]:
                return 200, {}, json.dumps({"id": "org/name", "sha": COMMIT}).encode()
            case ["api", "models", "org", "name", "tree", _]:
                tree = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in FILES.items()]
                return 200, {}, json.dumps(tree).encode()
            case ["org", "name", "resolve", _, name]:
                return 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, FILES[name]
            case ["api", "models", "org", "name", "revision", _]:
                return missing("RevisionNotFound")
            case _:
                return missing("RepoNotFound")


class HubServer(ThreadingHTTPServer):
    hub: Hub


class HubRequest(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        status, headers, body = self.server.hub.answer(self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with HubServer(("127.0.0.1", 0), HubRequest) as server:
        server.hub = Hub()
        point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which huggingface_hub reads when it is imported; other variables play no part."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refusal(source: str, cache: Path, *, offline: bool = False) -> str:
    with pytest.raises(SourceError) as refused:
        fetch(source, cache, offline=offline)
    assert str(refused.value).startswith(f"{source}: ")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_repository_is_downloaded_without_the_formats_nobody_reads(hub: Hub, tmp_path: Path) -> None:
    assert not is_cached(f"hub:org/name@{COMMIT}", tmp_path)

    folder = fetch(f"hub:org/name@{COMMIT}", tmp_path)

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"w" * 3000,
    }
    assert folder.is_relative_to(tmp_path)
    assert is_cached(f"hub:org/name@{COMMIT}", tmp_path)


def test_progress_counts_the_bytes_of_all_files(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []

    fetch("hub:org/name@main", tmp_path, progress=lambda *report: seen.append(report))

    assert seen[-1] == ("downloading", 3002, 3002)


def test_a_commit_that_is_here_is_not_looked_up_again(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(f"hub:org/name@{COMMIT}", tmp_path)
    hub.requests.clear()

    assert fetch(f"hub:org/name@{COMMIT}", tmp_path) == folder
    assert hub.requests == []


def test_a_branch_is_looked_up_at_every_fetch_but_not_offline(hub: Hub, tmp_path: Path) -> None:
    folder = fetch("hub:org/name@main", tmp_path)
    hub.requests.clear()

    assert fetch("hub:org/name@main", tmp_path, offline=True) == folder
    assert hub.requests == []
    assert fetch("hub:org/name@main", tmp_path) == folder
    assert hub.requests[0].startswith("/api/models/org/name/revision/main")


def test_a_branch_in_the_cache_serves_while_the_hub_is_down(hub: Hub, tmp_path: Path) -> None:
    folder = fetch("hub:org/name@main", tmp_path)
    hub.is_down = True

    assert fetch("hub:org/name@main", tmp_path) == folder


def test_an_incomplete_download_is_not_taken_for_a_model(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(f"hub:org/name@{COMMIT}", tmp_path)
    (folder / "model.safetensors").unlink()

    assert not is_cached(f"hub:org/name@{COMMIT}", tmp_path)
    assert (fetch(f"hub:org/name@{COMMIT}", tmp_path) / "model.safetensors").is_file()


def test_offline_without_the_files_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    message = refusal("hub:org/name@main", tmp_path, offline=True)

    assert message.endswith("not in the cache, and offline mode is on; run `gateway pull` online first")
    assert hub.requests == []


def test_huggingface_hubs_own_offline_switch_is_obeyed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE is set" in refusal("hub:org/name@main", tmp_path)
    assert hub.requests == []


def test_a_repository_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    assert "no such repository, or a private one; check the name, or set HF_TOKEN" in refusal(
        "hub:org/other@main", tmp_path
    )


def test_a_repository_name_that_cannot_be_is_told(tmp_path: Path) -> None:
    assert not is_cached("hub:org/a..b@main", tmp_path)
    assert "the hub allows no such repository name" in refusal("hub:org/a..b@main", tmp_path)


def test_a_revision_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    assert "the repository has no such revision" in refusal("hub:org/name@v9", tmp_path)


def test_a_hub_out_of_reach_gives_one_line_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{closed.getsockname()[1]}", monkeypatch)

        message = refusal("hub:org/name@main", tmp_path)

    assert "the hub gave no answer ([Errno 111] Connection refused); check the network" in message
