"""Where and in which number type networks compute."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import UserError, distributed

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Precision:
    """Where and in which type the network computes; `dtype` None is plain float32."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return f"{self.device} in {'float32' if self.dtype is None else f'{self.dtype} autocast'}".replace("torch.", "")


def find_device(name: str | None = None) -> torch.device:
    """The device of that name, else the first of cuda, mps, cpu that is there; under torchrun each process's own GPU.

    A GPU becomes the current one, on which torch puts its events.

    UserError when it is not there.
    """
    if name in (None, "cuda") and distributed.launched() and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return device


def find_precision(device: torch.device, amp: str = "auto") -> Precision:
    """How to compute on `device`: "auto" takes bfloat16 where the hardware multiplies it faster than float32."""
    if amp == "auto":
        if device.type == "cuda":
            with torch.cuda.device(device):
                amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            amp = "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "off"
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs a CUDA device, not {device.type}; use bf16 or off")
    return Precision(device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp])


def _cpu_multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 instructions; without them autocast is slower than float32."""
    try:
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return False


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, where it is glibc; elsewhere do nothing.

    It hands large blocks back to the system, which then clears every page of the same activations anew at each step:
    with that, ResNet-50's took 0.78 s (8 images at 224², one thread) and ARL-50's 1.39, without 0.72 and 0.99.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_deterministic_kernels() -> None:
    """Have PyTorch take kernels that give the same bits each time; it warns of operations that have none.

    On a CPU they do so anyway. To be called before the GPU is used.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True, warn_only=True)
