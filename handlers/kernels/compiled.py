"""How a kernel is compiled, and whether kernels may be used at all."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums in any order; but what is not a number stays that, so that a broken row is noticed.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: Function) -> Function:
    """Compiled for the types it is called with. It runs without the interpreter's lock, in one thread."""
    return _compiled(function)


def parallel_kernel(function: Function) -> Function:
    """As `kernel`; the turns of its `prange` are shared among the threads."""
    return _compiled(function, parallel=True)


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "fastmath": _FASTMATH, "boundscheck": False}
    compiled: Any
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is nowhere to keep it: neither beside the source nor in the user's cache
        compiled = numba.njit(**options)(function)
    return cast(Function, compiled)


@cache
def kernels_pay() -> bool:
    """Whether kernels share PyTorch's threads. Numba's other thread pools take as long to wake up as a kernel runs.

    Numba needs the system's libgomp for that. PyTorch, imported first, offers its own, which both then use.
    """
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    vars(numba.config)["THREADING_LAYER"] = "omp"
    return True
