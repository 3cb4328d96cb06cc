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


def test_the_flags_come_back_also_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError(name)

    before = sys.getdlopenflags()
    monkeypatch.setattr(openmp, "import_module", fail)
    monkeypatch.delitem(sys.modules, "ctranslate2", raising=False)
    with pytest.raises(ImportError):
        openmp.import_ctranslate2()
    assert sys.getdlopenflags() == before
