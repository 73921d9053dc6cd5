"""Several processes that train one model together, as `torchrun` starts them; alone, everything here does nothing.

    torchrun --nproc-per-node 2 seg_main.py --experiment seg-2

A step's batch is shared out among the processes: batch size, learning rate, number of steps and order of the images do
not depend on how many there are. Batch norm does: it normalises by each process's own images, unless --sync-batchnorm.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError
from utils.logger import is_main

Value = TypeVar("Value")
WAIT = timedelta(hours=2)  # for the process that prepares images or scores the test images; torch's own is 10 minutes
_alone = False


def launched() -> bool:
    """Whether `torchrun` started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def processes() -> int:
    """How many processes train together."""
    if not launched() or _alone:
        return 1
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within, the processes that `torchrun` started are connected: gloo for the CPU's tensors, NCCL for GPUs'.

    UserError when they do not find each other.
    """
    if not launched():
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of torchrun do not find each other ({str(error).splitlines()[0]})") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """The first process does what is within before the others begin: they find files that it has left."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works as if it were the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def wait_for_all() -> None:
    """Return when every process has come here."""
    any_process(False)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any of the processes; all get the same answer."""
    if processes() == 1:
        return flag
    value = torch.tensor(int(flag))  # on the CPU, so that no GPU has to finish first
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def mean(value: Tensor) -> Tensor:
    """Of a tensor over the processes, where it is; no GPU is waited for."""
    if processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def gather(items: list[Value]) -> list[Value]:
    """The items of all processes, in their order, on every one of them; plain values."""
    if processes() == 1:
        return items
    lists: list[Any] = [None] * processes()
    dist.all_gather_object(lists, items)
    return [item for each in lists for item in each]


def share(count: int) -> range:
    """This process's indices of 0 … count - 1: every index is some process's, and only one's."""
    return range(rank(), count, processes())


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's running statistics: each has its own after a step, and one set is saved."""
    if processes() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, its gradients averaged over the processes in the backward pass; alone, itself."""
    if processes() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)  # `share_buffers` does that
