"""From prepared images to batches: training draws augmented views of a cache (`utils.data.cache`)."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils import UserError, distributed
from utils.data.cache import ImageCache
from utils.data.transforms import Transforms
from utils.device import cores
from utils.signals import leave_to_the_main_process

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the pretrained encoders expect


class TrainingSet(Dataset):
    """Augmented views of a cache; which view depends on (seed, epoch, index) alone, not on the worker."""

    def __init__(self, cache: ImageCache, views: Transforms, seed: int) -> None:
        self.cache, self.views, self.seed = cache, views, seed

    def __len__(self) -> int:
        return len(self.cache.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, Any]:
        """(epoch, index) → image uint8 [H, W, 3] and what the views give as its target."""
        epoch, index = key
        seed = draw_seed(self.seed, epoch, index)
        return self.views(self.cache.image(index), self.cache.samples[index], seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Every index once an epoch, in an order drawn from (seed, epoch), in batches of (epoch, index).

    A step's batch comes in `parts` pieces for each of `processes`; this process gets its own. Together, and in order,
    the pieces are the batch that one process gets in one piece.

    Attributes:
        epoch: set it before each pass.
        start: steps of the epoch to pass over, because they are done.
        steps: of a whole epoch. A last batch that is not full is left out: of a single image or two, it would push
            weights and running statistics its way, just before validation. Each epoch leaves other images out.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, parts: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed, self.parts = count, min(count, batch_size), seed, parts
        self.rank, self.processes = rank, processes
        self.epoch = self.start = 0
        self.steps = count // self.batch_size
        if self.batch_size % (parts * processes):
            raise UserError(
                f"a batch of {self.batch_size} cannot be shared by {processes} processes in {parts} parts each: choose "
                f"a --batch-size that is a multiple of {parts * processes}"
            )

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for step in range(self.start, self.steps):
            pieces = self._batch(order, step).reshape(self.processes, self.parts, -1)
            for piece in pieces[self.rank]:
                yield [(self.epoch, index) for index in piece.tolist()]

    def indices(self, step: int) -> list[int]:
        """Of the images of a step (from 0) of this epoch, in all processes."""
        return self._batch(self._order(), step).tolist()

    def _order(self) -> np.ndarray:
        return np.random.default_rng(draw_seed(self.seed, self.epoch)).permutation(self.count)

    def _batch(self, order: np.ndarray, step: int) -> np.ndarray:
        return order[step * self.batch_size : (step + 1) * self.batch_size]


def draw_seed(*numbers: int) -> int:
    """One 32-bit seed from several whole numbers ≥ 0, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def default_workers(device: torch.device) -> int:
    """Worker processes that work everywhere: none on a CPU, where they would take the cores that train.

    Beside a GPU one per core, 8 at most (processes that `torchrun` started share the cores), but none on Windows and
    macOS: worker processes start afresh there and import the main script, which a notebook does not survive.
    """
    if device.type == "cpu" or sys.platform in ("win32", "darwin"):
        return 0
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def train_loader(
    cache: ImageCache,
    views: Transforms,
    batch_size: int,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    parts: int = 1,
) -> DataLoader:
    """Augmented images uint8 [B, H, W, 3] and their targets [B, …], a step's batch in `parts` pieces one after another.

    `loader.batch_sampler` is an `EpochBatches`: set its `epoch` before each pass. Of several processes
    (`utils.distributed`), each gets its share of every batch. UserError when the batch cannot be shared evenly.
    """
    workers = default_workers(device) if workers is None else workers
    fork = workers > 0 and sys.platform not in ("win32", "darwin")
    if fork:
        cv2.setNumThreads(0)  # a fork copies the locks that OpenCV's threads may hold, without the threads
    share = distributed.rank(), distributed.processes()
    return DataLoader(
        TrainingSet(cache, views, seed),
        batch_sampler=EpochBatches(len(cache.samples), batch_size, seed, parts, *share),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if fork else None,
        generator=torch.Generator(),  # its own, so that the global random state is left alone
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # one process a core; OpenCV would start as many threads in each
    leave_to_the_main_process(worker)


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] of 0 to 255 → normalised float32 [B, 3, H, W] on `device`, channels last in memory."""
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    mean, std = _normalisation(device)
    return (images - mean) / std


@functools.cache  # copying them anew would wait for the GPU at every batch
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return mean, std
