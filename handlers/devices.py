"""Which device and number format a model runs in, and how that device says that its memory is full.

torch is imported inside the functions: the proxy-only process never needs it.
"""

import ctypes
import gc
import logging
import platform
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_X86 = ("x86_64", "AMD64")
_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


def pick_device(wish: str = "auto") -> str:
    """`cuda`, `mps` or `cpu`; "auto" takes the first of these that is there. Raises ValueError for an absent one."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wish == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(wish.split(":")[0], False):
        there = ", ".join(name for name, present in available.items() if present)
        raise ValueError(f"device {wish!r} is not available here; there is {there}, or let `auto` choose")
    return wish


def pick_dtype(device: str, wish: str = "auto") -> "torch.dtype":
    """ "auto" is what the device multiplies fastest without losing quality: bfloat16 where it is native, else float32.

    MPS takes float16: its bfloat16 is emulated before the M2.
    """
    import torch

    if wish != "auto":
        dtype = getattr(torch, wish)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32


def packs_weights(device: "torch.device", dtype: "torch.dtype") -> bool:
    """Whether oneDNN has a layout of its own for linear weights there: on x86, in a dtype that is native to it."""
    import torch

    if device.type != "cpu" or platform.machine() not in _X86 or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _cpu_multiplies_bfloat16())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no room. All say so in words: torch.OutOfMemoryError is a RuntimeError too."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_TEXTS)


def synchronize(device: "torch.device") -> None:
    """Wait until an accelerator has computed what it was given; the processor always has."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def release_memory() -> None:
    """Give back what a failed batch, or the loading of a model, held: to the device and to the system."""
    gc.collect()
    torch = sys.modules.get("torch")  # an engine that does without it has nothing there
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        # It keeps freed memory for later in hundreds of places: 100 MB after the starter models are loaded.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cpu_multiplies_bfloat16() -> bool:
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
