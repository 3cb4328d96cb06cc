"""Who may import whom, and what no package may do; read from the source, so that nothing has to be imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "gateway": {"gateway", "handlers", "batching", "proxy"},
    "handlers": {"handlers", "batching"},
    "batching": {"batching"},
    "proxy": {"proxy"},
}
OURS = {*MAY_IMPORT, "tests"}
NOT_FOR = {
    "gateway": {"torch", "transformers"},
    "handlers": {"starlette", "uvicorn"},
    "batching": {"torch", "transformers", "starlette", "uvicorn", "httpx2"},
    "proxy": {"torch", "transformers"},
}
FOR_NOBODY = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
MAY_READ_ENVIRONMENT = {
    "gateway/settings.py",
    "gateway/cli.py",
    "handlers/sources/package_index.py",  # reads nothing from it: hands it on to the user's own pip
    "handlers/transcription/openmp.py",  # for a library that reads it as it is loaded
}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load"}
FILES = sorted(str(path.relative_to(ROOT)) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "transformers", "librosa", "faster_whisper"}


def imports(tree: ast.AST, path: str) -> Iterator[str]:
    """Every imported name in full (`os.environ` for `from os import environ`), relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.split("/")[: -node.level] if node.level else []
            yield from (".".join([*parents, *filter(None, [node.module]), alias.name]) for alias in node.names)


def breaches(path: str, source: str) -> list[str]:
    """What a file does that its place in the tree does not allow."""
    tree, package = ast.parse(source), path.partition("/")[0]
    imported = set(imports(tree, path))
    roots = {name.partition(".")[0] for name in imported}
    used = imported | {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = imported | {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = roots & (OURS - MAY_IMPORT[package] | NOT_FOR[package] | FOR_NOBODY)
    found |= called & FORBIDDEN_CALLS
    found |= set() if path in MAY_READ_ENVIRONMENT else used & ENVIRONMENT
    return sorted(found)


@pytest.mark.parametrize("path", FILES)
def test_a_file_does_only_what_its_place_allows(path: str) -> None:
    assert breaches(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        ("proxy/a.py", "import gateway.app", "gateway"),
        ("proxy/a.py", "from gateway import x", "gateway"),
        ("batching/a.py", "from proxy.errors import UpstreamError as E", "proxy"),
        ("handlers/chat/a.py", "from proxy import relay", "proxy"),
        ("handlers/chat/a.py", "from ...gateway import app", "gateway"),
        ("handlers/a.py", "from .. import gateway", "gateway"),
        ("batching/a.py", "def f():\n    import handlers.base", "handlers"),
        ("proxy/a.py", "class A:\n    def f(self):\n        from batching import job", "batching"),
        ("gateway/routes/a.py", "if True:\n    import tests.clock", "tests"),
        ("batching/a.py", "import torch", "torch"),
        ("batching/a.py", "from starlette.requests import Request", "starlette"),
        ("proxy/a.py", "def f():\n    import torch.nn", "torch"),
        ("batching/a.py", "import os\nos.environ['A']", "os.environ"),
        ("handlers/a.py", "import os\nos.environ.get('A')", "os.environ"),
        ("gateway/app.py", "import os\nos.getenv('A')", "os.getenv"),
        ("gateway/app.py", "from os import environ as e", "os.environ"),
        ("handlers/a.py", "import pickle", "pickle"),
        ("handlers/a.py", "from pickle import loads", "pickle"),
        ("gateway/a.py", "eval('1')", "eval"),
        ("gateway/a.py", "exec('1')", "exec"),
        ("handlers/a.py", "import torch\ntorch.load('weights.bin')", "torch.load"),
        ("handlers/a.py", "from torch import load", "torch.load"),
    ],
)
def test_a_planted_breach_is_found(path: str, source: str, breach: str) -> None:
    assert breaches(path, source) == [breach]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gateway/routes/a.py", "from handlers.registry import Registry\nfrom batching import job\nimport proxy.relay"),
        ("gateway/routes/a.py", "from .. import errors\nfrom ..schemas.chat import ChatCompletion"),
        (
            "handlers/chat/a.py",
            "import torch\nfrom batching.job import Job\nfrom ..spec import ModelSpec\nmodel.eval()",
        ),
        ("gateway/settings.py", "import os\nos.environ"),
        ("proxy/a.py", "import httpx2\nfrom proxy.errors import ProxyError"),
    ],
)
def test_what_is_allowed_is_not_taken_for_a_breach(path: str, source: str) -> None:
    assert breaches(path, source) == []


@pytest.mark.parametrize(
    "modules", ["gateway.app", "handlers.registry, handlers.starter", "proxy.relay, proxy.upstream"]
)
def test_importing_it_loads_no_model_library(modules: str) -> None:
    program = f"import sys, {modules}\nprint({HEAVY} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("set()\n", "")
