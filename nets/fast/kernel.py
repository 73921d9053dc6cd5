"""Loads what makes an ARL block several times faster: `arl.c` on a CPU, `triton_sum.py` on NVIDIA GPUs.

`arl.c` is compiled once for each number type, by the system's C compiler, into the user's cache folder. Where that is
not possible, or ARL_KERNEL=0 is in the environment, everything works without it.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("arl.c")
LANES = 32  # channels come in multiples of it: a cache line of bfloat16, accumulators that fit in vector registers
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
    f"-DLANES={LANES}",
)
TYPES = {torch.bfloat16: "-DBFLOAT16", torch.float32: "-DFLOAT32"}
log = logging.getLogger("isic2017")


def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled functions for tensors of a type; None for others than `TYPES`, and where there is no Linux.

    Also where there is no compiler, or it fails: with a line in the log.
    """
    off = os.environ.get("ARL_KERNEL") == "0" or sys.platform != "linux" or dtype not in TYPES
    return None if off else _load(TYPES[dtype])


@cache
def load_triton(device: torch.device) -> type[torch.autograd.Function] | None:
    """`TritonSum`, tried out on the device; None (with a line in the log) where it fails."""
    try:
        from nets.fast.triton_sum import TritonSum  # PyTorch brings Triton on Linux alone

        with torch.no_grad():
            TritonSum.apply(*torch.ones((2, 1, 16, 1, 1), device=device), torch.ones((), device=device), False)
    except Exception as error:  # Triton wants a recent GPU, a C compiler and Python's headers, each with its own error
        reason = str(error).strip().partition("\n")[0]
        log.info("ARL blocks are computed by PyTorch, which is slower on a GPU: no Triton kernel (%s)", reason)
        return None
    return TritonSum


@cache
def _load(flag: str) -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        log.info("no C compiler (cc): ARL blocks are computed by PyTorch, which is slower on a CPU")
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler, flag)))
        pointer, whole, options = ctypes.c_void_p, ctypes.c_long, [ctypes.c_float, ctypes.c_int]
        library.attended_sum.argtypes = [*[pointer] * 5, *options, *[whole] * 3]
        library.attended_sum_gradients.argtypes = [*[pointer] * 5, *options, *[pointer] * 3, *[whole] * 3]
    except (OSError, AttributeError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        log.info("ARL blocks are computed by PyTorch, which is slower on a CPU: no compiled arl.c (%s)", reason)
        return None
    return library


def _compiled(compiler: str, flag: str) -> Path:
    """The library for this source, type, compiler and processor, made where it is not there yet."""
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.node()  # a home folder may be shared by machines
    key = repr((SOURCE.read_text(), FLAGS, flag, compiler, platform.machine(), processor))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arl-kernel"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        # What lies there is run.
        raise RuntimeError(f"{folder} is another user's, or others may write in it: choose another by XDG_CACHE_HOME")
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as place:  # renamed when whole: others may want it too
            partial = Path(place) / path.name
            subprocess.run(
                [compiler, *FLAGS, flag, str(SOURCE), "-o", str(partial)], check=True, capture_output=True, text=True
            )
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # what a power cut leaves half written could end the process that loads it
            partial.replace(path)
    return path
