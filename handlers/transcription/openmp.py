"""CTranslate2 with the OpenMP library that it brings, not with PyTorch's.

PyTorch offers its own to everything that is loaded later. With both on one library, the threads of both are counted
together, are more than there are cores, and so are put to sleep after every small operation: a step of a chat takes
twice as long (gcc's libgomp, `gomp_throttled_spin_count_var`). With two libraries each counts its own.
"""

import os
import sys
from importlib import import_module


def import_ctranslate2() -> None:
    """Resolve its symbols in its own libraries first. Elsewhere than on Linux, nothing is shared in the first place."""
    deep = getattr(os, "RTLD_DEEPBIND", None)
    if deep is None or "ctranslate2" in sys.modules:
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | deep)
    try:
        import_module("ctranslate2")
    finally:
        sys.setdlopenflags(flags)
