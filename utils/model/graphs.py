"""A training step as a CUDA graph: hundreds of kernels, launched as one, where else the GPU waits for Python.

The first steps run as they are: they let cuDNN choose, Triton compile and the optimizer make its state. Then a step is
recorded, which changes nothing, and from there on replayed: it reads each batch, and the learning rate, where the
recorded one did, and draws the random numbers that a step without a graph would draw.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils import distributed
from utils.device import Precision
from utils.logger import log

WARM_UP = 3  # steps before the one that is recorded
Batch = Sequence[tuple[Tensor, Tensor]]  # micro-batches of (images, targets)
Results = tuple[Tensor, ...]
Record = Callable[[Callable[[], Results]], tuple[Callable[[], None], Results]]


class GraphedStep:
    """Calls `step`, which changes weights, and after WARM_UP calls replays it; as it is, with one line, if that fails.

    Args:
        step: micro-batches → tensors; it waits for nothing on the GPU, and all its batches have the same shapes.
        optimizer: what the step updates the weights with; its options and state stay in the form that checkpoints have.
        device: of the weights.
        record: function without arguments → what replays it, and the tensors that hold its results then.
    """

    def __init__(self, step: Callable[[Batch], Results], optimizer: Optimizer, device: torch.device, record: Record):
        self._step, self._optimizer, self._device, self._record = step, optimizer, device, record
        self._left = WARM_UP
        self._replay: Callable[[], None] | None = None

    def __call__(self, batch: Batch) -> Results:
        self._left -= 1
        if self._left == -1:
            self._prepare(batch)
        if self._replay is None:
            return self._step(batch)
        for buffers, tensors in zip(self._buffers, batch, strict=True):
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._replay()
        return tuple(result.clone() for result in self._results)  # the next replay writes over them

    def _prepare(self, batch: Batch) -> None:
        self._buffers = [tuple(tensor.to(self._device, copy=True) for tensor in tensors) for tensors in batch]
        self._rates = [torch.tensor(group["lr"], device=self._device) for group in self._optimizer.param_groups]

        def step() -> Results:
            with _rates_on_device(self._optimizer, self._rates):
                return self._step(self._buffers)

        try:
            self._replay, self._results = self._record(step)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            log.warning("steps are launched kernel by kernel, which is slower than one CUDA graph: %s", reason)
            self._buffers, self._rates = [], []


@contextmanager
def _rates_on_device(optimizer: Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Within, the optimizer's kernels read the learning rates from these tensors."""
    groups = [group.copy() for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
    try:
        yield
    finally:
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.update(before)


def find_record(wanted: bool, precision: Precision) -> Record | None:
    """`record` on a GPU; None, with a line, for several processes (gradients meet) and float16 (a loss scaler)."""
    if not wanted or precision.device.type != "cuda":
        return None
    if distributed.processes() > 1 or precision.dtype == torch.float16:
        reason = "several processes train" if distributed.processes() > 1 else "in float16"
        log.info("steps are launched kernel by kernel, which is slower than one CUDA graph: %s", reason)
        return None
    return record


def record(function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """Its kernels as a CUDA graph, none of them run yet. RuntimeError where it waits for the GPU, or has no CUDA."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # what earlier steps left would tie the recorded one to their stream
    # In "thread_local" mode the loader's thread may lock memory meanwhile. The outer context restores the stream where
    # a recording that failed does not.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function()
    return graph.replay, results
