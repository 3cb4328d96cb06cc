"""CTranslate2 is bound to its own OpenMP library, and nothing else is."""

import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from handlers.transcription import openmp

pytestmark = pytest.mark.skipif(not hasattr(os, "RTLD_DEEPBIND"), reason="libraries are not shared like this here")


@pytest.fixture
def flags_at_import(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The flags with which libraries are opened while CTranslate2 is imported."""
    seen: list[int] = []

    def note(name: str) -> ModuleType:
        seen.append(sys.getdlopenflags())
        return ModuleType(name)

    monkeypatch.setattr(openmp, "import_module", note)
    monkeypatch.delitem(sys.modules, "ctranslate2", raising=False)
    yield seen


def test_its_symbols_are_looked_up_in_its_own_libraries_first(flags_at_import: list[int]) -> None:
    before = sys.getdlopenflags()
    openmp.import_ctranslate2()
    assert flags_at_import == [before | os.RTLD_DEEPBIND]
    assert sys.getdlopenflags() == before != flags_at_import[0]


@pytest.mark.parametrize(("theirs", "at_import"), [(None, "3000"), ("0", "0")])
def test_its_threads_spin_briefly_unless_the_user_has_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, theirs: str | None, at_import: str
) -> None:
    seen = []

    def note(name: str) -> ModuleType:
        seen.append(os.environ["GOMP_SPINCOUNT"])
        return ModuleType(name)

    monkeypatch.setattr(openmp, "import_module", note)
    monkeypatch.delitem(sys.modules, "ctranslate2", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if theirs is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", theirs)
    openmp.import_ctranslate2()
    assert (seen, os.environ.get("GOMP_SPINCOUNT")) == ([at_import], theirs)


def test_the_flags_come_back_also_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError(name)

    before = sys.getdlopenflags()
    monkeypatch.setattr(openmp, "import_module", fail)
    monkeypatch.delitem(sys.modules, "ctranslate2", raising=False)
    with pytest.raises(ImportError):
        openmp.import_ctranslate2()
    assert sys.getdlopenflags() == before
