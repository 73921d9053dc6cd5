"""Clocks and counters: timings that wait for the device, interleaved rounds, floating-point operations, memory."""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Action = Callable[[], Any]


def timed(action: Action, device: torch.device) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    _synchronize(device)
    start = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(actions: Mapping[str, Action], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of every action, `rounds` each, taken in turn (A B A B …) so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            seconds[name].append(timed(action, device))
    return seconds


def rate(seconds: Sequence[float], images: int, flops: float | None = None) -> dict[str, float]:
    """Median and least seconds of some calls, and what that makes a second; `images` and `flops` are of one call."""
    median = statistics.median(seconds)
    row = {"seconds": median, "seconds_min": min(seconds), "rounds": len(seconds), "images_per_second": images / median}
    return row if flops is None else row | {"flops_per_image": flops / images, "gflops": flops / median / 1e9}


def compare(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Time of the first over time of the second: the median over rounds of their ratio, and least over least."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(pairs), "min_over_min": min(slow) / min(fast), "pairs": pairs}


def training_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of forward and backward pass on images [B, 3, H, W] of that shape.

    Counts convolutions and matrix products, a multiplication and an addition as two. Computes it on two images.
    """
    batch_size, *image = shape
    images = torch.zeros(2, *image)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _of_gradients}) as counter:
        model.train()(images).sum().backward()
    return counter.get_total_flops() * batch_size // 2


def _of_gradients(
    gradient, image, weight, _bias, _stride, _padding, _dilation, transposed, _more, _groups, wanted, **_
):
    """Operations of a convolution's backward pass, by shapes; PyTorch's own count overlooks groups."""
    return sum(wanted[:2]) * 2 * math.prod(image if transposed else gradient) * math.prod(weight[1:])


class Matmul:
    """Products of two square matrices, many in a burst: the rate that this machine reaches at all.

    Args:
        sizes: rows to try.
        seconds: of a burst, about.

    Attributes:
        size: the rows with the best rate, which `burst` and `rate` go by.
        tried: GFLOP/s by rows.
    """

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype, device: torch.device, seconds: float) -> None:
        self.device, self.dtype, self.seconds = device, dtype, seconds
        self.tried: dict[int, float] = {}
        for size in sizes:
            self._take(size)
            self.tried[size] = max(self.rate(timed(self.burst, device)) for _ in range(2))
        self.size = max(self.tried, key=self.tried.get)
        self._take(self.size)

    def _take(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand((2, size, size), generator=generator) - 0.5
        self.a, self.b = drawn.to(self.device, self.dtype)
        self.size, self.count = size, 1
        seconds = min(timed(self.burst, self.device) for _ in range(3))  # the first one warms up
        self.count = max(1, round(self.seconds / seconds))

    def burst(self) -> None:
        for _ in range(self.count):
            self.a @ self.b

    def rate(self, seconds: float) -> float:
        """GFLOP/s of a burst that took so long."""
        return self.count * 2 * self.size**3 / seconds / 1e9


def memory_mb(field: str) -> float:
    """A line of /proc/self/status in MB: "RssAnon" is private memory, without pages of files; "VmHWM" the peak of all.

    0 where there is no such file (it is Linux's).
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), 0.0)


@contextmanager
def peak_private(row: dict[str, Any]) -> Iterator[None]:
    """Adds to the row by how many MB this process's private memory grew at most, looked at every 20 ms."""
    before, done = memory_mb("RssAnon"), threading.Event()
    peak = before

    def look() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, memory_mb("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        row["private_mb"] = max(peak, memory_mb("RssAnon")) - before


def processor() -> str:
    """The name of this machine's processor where Linux tells it, else ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
