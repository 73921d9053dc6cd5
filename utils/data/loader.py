"""Dataset, batch sampler and DataLoader for training: augmented images from a cache (`utils.data.cache`)."""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils import UserError, distributed
from utils.data.cache import ImageCache, JoinedCache
from utils.data.parallel import cores
from utils.data.transforms import Transforms
from utils.signals import kept_from_new_processes, leave_to_the_main_process

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the pretrained encoders expect


class TrainingSet(Dataset):
    """Augmented images of a cache; how each is drawn depends on (seed, epoch, index) alone, not on the worker."""

    def __init__(self, cache: ImageCache | JoinedCache, transforms: Transforms, seed: int) -> None:
        self.cache, self.transforms, self.seed = cache, transforms, seed

    def __len__(self) -> int:
        return len(self.cache.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, Any]:
        """(epoch, index) → image uint8 [H, W, 3] and what the transforms give as its target."""
        epoch, index = key
        seed = draw_seed(self.seed, epoch, index)
        return self.transforms(self.cache.image(index), self.cache.samples[index], seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Every index below `count` once an epoch, in an order drawn from (seed, epoch), in batches of (epoch, index).

    `extra` more images follow as indices from `count` on. They take `share` of every batch, and an epoch has as many
    steps as without them: it goes through the other part of the images, each at most once.

    Each of `processes` gets its share of a step's batch, in `accumulate` micro-batches; together, and in order, they
    are the batch that a single process gets as a whole.

    Attributes:
        epoch: set it before each epoch.
        start: steps to skip when an epoch is resumed.
        steps: of a whole epoch. An incomplete last batch is dropped: of one image or two, it would distort weights and
            running statistics just before validation. Each epoch drops other images.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
        extra: int = 0,
        share: float = 0.0,
    ) -> None:
        self.extra, self.share = extra, share
        self.count, self.batch_size, self.seed = count, min(count, batch_size), seed
        self.accumulate, self.rank, self.processes = accumulate, rank, processes
        self.epoch = self.start = 0
        self.steps = count // self.batch_size
        if self.batch_size % (accumulate * processes):
            raise UserError(
                f"a batch of {self.batch_size} cannot be shared by {processes} processes in {accumulate} micro-batches "
                f"each: choose a --batch-size that is a multiple of {accumulate * processes}"
            )

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches()[self.start :]:
            for indices in batch.reshape(self.processes, self.accumulate, -1)[self.rank]:
                yield [(self.epoch, index) for index in indices.tolist()]

    def indices(self, step: int) -> list[int]:
        """Of the images of a step (from 0) of this epoch, in all processes."""
        return self._batches()[step].tolist()

    def _batches(self) -> np.ndarray:
        """Of this epoch: [steps, batch size]."""
        rng = np.random.default_rng(draw_seed(self.seed, self.epoch))
        order = rng.permutation(self.count)
        if not self.extra:
            return order[: self.steps * self.batch_size].reshape(self.steps, -1)
        mixed = max(1, round(self.share * self.batch_size))  # images of a batch
        wanted = self.steps * mixed
        others = np.concatenate([rng.permutation(self.extra) for _ in range(-(-wanted // self.extra))])
        own = order[: self.steps * (self.batch_size - mixed)].reshape(self.steps, -1)
        batches = np.hstack([own, self.count + others[:wanted].reshape(self.steps, mixed)])
        return rng.permuted(batches, axis=1)  # within a batch, so that every micro-batch has of both


def draw_seed(*numbers: int) -> int:
    """One 32-bit seed from several whole numbers ≥ 0, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def default_workers(device: torch.device) -> int:
    """Default number of DataLoader workers: none on a CPU, where they would take the cores that train.

    Beside a GPU one per core, 8 at most (processes that `torchrun` started share the cores); none on Windows and macOS.
    """
    if device.type == "cpu" or sys.platform in ("win32", "darwin"):
        return 0
    return max(1, min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class TrainLoader(DataLoader):
    """A DataLoader whose processes do not import the main script: a converted notebook would run in each of them."""

    def __iter__(self) -> Iterator:
        with _nameless_main(), kept_from_new_processes():
            return super().__iter__()


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hides the main script from worker processes that start within (`multiprocessing.spawn` goes by these two)."""
    main = sys.modules["__main__"].__dict__
    before = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        del main["__spec__"]
        main.update(before)


def train_loader(
    cache: ImageCache | JoinedCache,
    transforms: Transforms,
    batch_size: int,
    seed: int,
    device: torch.device,
    workers: int | None = None,
    accumulate: int = 1,
    extra_share: float = 0.0,
) -> DataLoader:
    """Augmented images uint8 [B, H, W, 3] and targets [B, …]: a step's batch as `accumulate` micro-batches in turn.

    `loader.batch_sampler` is an `EpochBatches`: set its `epoch` before each pass. Of several processes
    (`utils.distributed`), each gets its share of every batch. UserError when the batch cannot be shared evenly.
    extra_share: part of each batch that the extra images of a `JoinedCache` have.
    """
    workers = default_workers(device) if workers is None else workers
    extra = len(cache.kept) if isinstance(cache, JoinedCache) else 0
    count, process = len(cache.samples) - extra, (distributed.rank(), distributed.processes())
    return TrainLoader(
        TrainingSet(cache, transforms, seed),
        batch_sampler=EpochBatches(count, batch_size, seed, accumulate, *process, extra, extra_share),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,  # a fork of a process with threads can deadlock
        generator=torch.Generator(),  # its own, so that the global random state is left alone
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # one process a core; OpenCV would start as many threads in each
    leave_to_the_main_process()


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
