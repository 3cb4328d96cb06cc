"""CTranslate2 with the OpenMP library that it brings, not with PyTorch's, and with threads that soon stop spinning.

PyTorch offers its own to everything that is loaded later. With both on one library, the threads of both are counted
together, are more than there are cores, and so are put to sleep after every small operation: a step of a chat takes
twice as long (gcc's libgomp, `gomp_throttled_spin_count_var`). With two libraries each counts its own.

Threads spin where they wait for each other. Where another program keeps a core busy, the system may leave both threads
of a transcription on the other core, where each spins while the other waits for its turn: 44 seconds of audio took 26 s
and more instead of 1.8. Who spins for some microseconds and then sleeps makes room: 4.7 s, and no more than before
where the cores are free (docs/perf_testing.md).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_SPINS = "GOMP_SPINCOUNT"
_MOST_SPINS = "3000"


def import_ctranslate2() -> None:
    """Resolve its symbols in its own libraries first. Elsewhere than on Linux, nothing is shared in the first place."""
    deep = getattr(os, "RTLD_DEEPBIND", None)
    if deep is None or "ctranslate2" in sys.modules:
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | deep)
    try:
        with _few_spins():
            import_module("ctranslate2")
    finally:
        sys.setdlopenflags(flags)


@contextmanager
def _few_spins() -> Iterator[None]:
    """For the library that is loaded meanwhile, which reads it then. A value that is set already stays."""
    is_set = _SPINS in os.environ
    os.environ.setdefault(_SPINS, _MOST_SPINS)
    try:
        yield
    finally:
        if not is_set:
            del os.environ[_SPINS]
