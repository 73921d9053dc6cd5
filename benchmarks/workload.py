"""What is measured: originals, caches and training as the scripts build them from a row of the experiments table."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import nets
from benchmarks.timing import interleave, peak_private, training_flops
from utils.config import EXPERIMENTS, Experiment
from utils.data.cache import CACHE, ImageCache, prepare
from utils.data.isic import Sample, read_split
from utils.data.loader import train_loader
from utils.data.synthetic import make_synthetic
from utils.data.transforms import TRAIN_TRANSFORMS, SegmentationTransforms, Transforms, cache_size
from utils.device import Precision
from utils.inference.classification import cache_sizes
from utils.loss import create_loss
from utils.model.trainer import Progress, Schedule, Trainer

FOLDER = CACHE.with_name("benchmark")

ORIGINALS_SEED = 3  # of the embedded sample: its first 32 images have 7.7 MP on average, ISIC's 7.3


@dataclass(frozen=True)
class Scale:
    """How much is measured; the defaults are for a few CPU cores.

    Attributes:
        originals: full-size images; every epoch of the plain pipeline reads them all.
        original_size: (width, height) or "isic", the challenge's own mix of sizes.
        image_size: (width, height) of all networks' input in place of the rows' own.
        batch_size: of all networks in place of the rows' own.
        steps: of one timed epoch of ours.
        epoch_steps: of one that is held beside as many bare steps.
        rounds: timings of everything, after a warm-up.
        loader_rows: images of a timed pass over a loader without training.
        matmul: rows of square matrices to try.
        burst: seconds of matrix products: far longer than a clock's grain, shorter than a step.
        sizes: heights of the networks' input over which cost is followed.
        counts: images over which memory is followed.
        count_size: pixels of the sides of those images.
        scored: images that are scored at full size.
        workers: loader processes over which cost is followed.
        step_rows: experiments whose bare steps alone are timed.
        smp_rows: experiments held beside segmentation_models.pytorch.
        worker_rows: experiments whose cost is followed over `workers`.
    """

    originals: int = 32
    original_size: tuple[int, int] | str = "isic"
    image_size: tuple[int, int] | None = None
    batch_size: int | None = None
    steps: int = 1
    epoch_steps: int = 2
    rounds: int = 5
    loader_rows: int = 256
    matmul: tuple[int, ...] = (512, 1024, 2048, 3072)
    burst: float = 0.3
    sizes: tuple[int, ...] = (128, 192, 224, 320)
    counts: tuple[int, ...] = (1_000, 10_000, 100_000)
    count_size: int = 32
    scored: tuple[int, ...] = (60, 600)
    workers: tuple[int, ...] = (0, 1, 2)
    step_rows: tuple[str, ...] = ("seg-4", "cls-2-4")
    smp_rows: tuple[str, ...] = ("seg-4", "seg-2")
    worker_rows: tuple[str, ...] = ("cls-2-4",)

    def row(self, name: str, **settings) -> Experiment:
        """The experiment of that name at this scale, with `settings` in place of the row's own."""
        changed = {"size": self.image_size, "batch_size": self.batch_size}
        changed = {key: value for key, value in changed.items() if value is not None}
        return replace(EXPERIMENTS[name], **changed | settings)


QUICK = Scale(
    originals=4, original_size=(192, 144), image_size=(64, 64), batch_size=2, epoch_steps=1, rounds=1, loader_rows=8,
    matmul=(64, 128), sizes=(32,), counts=(64, 256), scored=(2, 4),
    workers=(1,), burst=0.01, step_rows=("cls-2-4",), smp_rows=("seg-4",), worker_rows=("cls-2-4",),
)  # fmt: skip
CUDA = Scale(
    steps=40, epoch_steps=120, loader_rows=2048, matmul=(4096, 8192, 16384), workers=(0, 1, 2, 4, 8)
)  # fmt: skip


def draw_originals(folder: Path, scale: Scale) -> list[Sample]:
    """The embedded sample's training images with mask and label, drawn into the folder unless they lie there."""
    size = scale.original_size
    name = size if isinstance(size, str) else "{}x{}".format(*size)
    root = make_synthetic(
        folder / f"originals_{name}_{scale.originals}", {"train": scale.originals}, size, ORIGINALS_SEED
    )
    return read_split(root, "train", leave_out_copies=False)


def store_sizes(row: Experiment, samples: Sequence[Sample]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(width, height) at which the row's training images are stored, and their center."""
    if row.task == "classification":
        return cache_sizes(samples, row.size, TRAIN_TRANSFORMS[row.train_views])
    return cache_size(row.size), None


def training_store(row: Experiment, samples: Sequence[Sample], folder: Path, rows: int) -> ImageCache:
    """The row's training images, decoded into the folder and repeated (or cut) to so many rows."""
    size, center = store_sizes(row, samples)
    cache = prepare(samples, size, folder, masks=row.task == "segmentation", center=center)
    return cache if rows == len(cache.samples) else repeat_rows(cache, rows, folder)


def repeat_rows(cache: ImageCache, rows: int, folder: Path) -> ImageCache:
    """A cache of that many rows, the given one's over and over; its file holds them all. Kept in the folder."""
    path, count, pixels = (
        folder / f"{cache.path.stem}x{rows}.npy",
        len(cache.samples),
        np.load(cache.path, mmap_mode="r"),
    )
    if not path.is_file():
        partial = path.with_suffix(".partial")
        repeated = np.lib.format.open_memmap(partial, "w+", pixels.dtype, (rows, *pixels.shape[1:]))
        for start in range(0, rows, count):
            repeated[start : start + count] = pixels[: rows - start]
        repeated.flush()
        partial.replace(path)
    return ImageCache(tuple(cache.samples[index % count] for index in range(rows)), path, cache.sizes)


def row_views(row: Experiment) -> Transforms:
    return (
        TRAIN_TRANSFORMS[row.train_views].build(row.size)
        if row.task == "classification"
        else SegmentationTransforms(row.size)
    )


def row_model(row: Experiment) -> nn.Module:
    """The row's network with random weights, whatever it starts from: they cost the same."""
    return nets.create_model(row.net, attention=row.attention, alpha=row.alpha)


def row_shape(row: Experiment) -> tuple[int, int, int, int]:
    """Of one batch of images for the network, [B, 3, H, W]."""
    return (row.batch_size, 3, row.size[1], row.size[0])


@dataclass(frozen=True)
class Training:
    """A row's trainer, the loader of its training images, and one batch of them on the device."""

    row: Experiment
    trainer: Trainer
    loader: DataLoader
    batch: tuple[Tensor, Tensor]

    @classmethod
    def build(cls, row: Experiment, cache: ImageCache, precision: Precision, workers: int | None = None) -> "Training":
        torch.manual_seed(0)
        views, device = row_views(row), precision.device
        loader = train_loader(cache, views, row.batch_size, 0, device, workers)
        schedule = Schedule(row.epochs, row.lr, row.weight_decay, row.patience, row.optimizer)
        criterion = create_loss(row.loss, class_weights=row.class_weights)
        trainer = Trainer(row_model(row), criterion, schedule, loader.batch_sampler.steps, precision)
        trainer.model.train()
        images, targets = next(iter(train_loader(cache, views, row.batch_size, 0, device, workers=0)))
        return cls(row, trainer, loader, (images.to(device), targets.to(device)))

    @property
    def images(self) -> int:
        """Images of one epoch."""
        return len(self.loader) * self.row.batch_size

    def warm_up(self) -> None:
        """Starts the loader's processes and takes one step."""
        load_all(self.loader)
        self.step()

    def step(self) -> None:
        self.trainer.step([self.batch])

    def steps(self) -> None:
        """As many steps as an epoch has, all on the batch that is there."""
        for _ in range(len(self.loader)):
            self.step()

    def epoch(self) -> None:
        self.trainer.train_one_epoch(self.loader)
        self.trainer.progress = Progress(self.trainer.progress.epoch + 1)


def load_all(loader: DataLoader) -> None:
    """One pass over a loader without training; consecutive passes draw the views of consecutive epochs."""
    for _ in loader:
        pass
    loader.batch_sampler.epoch += 1


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        samples: the originals.
        folder: for caches; kept.
        ratios: filled by the parts.
    """

    scale: Scale
    samples: list[Sample]
    precision: Precision
    folder: Path
    ratios: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.precision.device

    def training(self, row: Experiment, steps: int | None = None, workers: int | None = None) -> Training:
        """The row's training, an epoch of it `steps` long (the scale's)."""
        rows = (steps or self.scale.steps) * row.batch_size
        return Training.build(row, training_store(row, self.samples, self.folder, rows), self.precision, workers)

    def loader(self, row: Experiment, workers: int | None = None) -> DataLoader:
        """The row's training images without a training: the scale's `loader_rows`, in whole batches."""
        rows = max(1, self.scale.loader_rows // row.batch_size) * row.batch_size
        cache = training_store(row, self.samples, self.folder, rows)
        return train_loader(cache, row_views(row), row.batch_size, 0, self.device, workers)

    def time(
        self, actions: dict[str, Callable], warm_up: Iterable[Callable], at_most: int = 100
    ) -> dict[str, list[float]]:
        """Seconds of every action in turn, the scale's number of rounds or at most so many, after what warms up."""
        for action in warm_up:
            action()
        return interleave(actions, self.device, min(self.scale.rounds, at_most))

    @contextmanager
    def peak_memory(self, row: dict[str, Any]) -> Iterator[None]:
        """Adds the peak of the GPU's memory to the row; on a CPU, by how much private memory grows at most."""
        if self.device.type != "cuda":
            with peak_private(row):
                yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        row["peak_gpu_mb"] = torch.cuda.max_memory_allocated(self.device) / 1e6


def row_flops(row: Experiment) -> int:
    """Operations of one training step."""
    return _flops(row.net, row.batch_size, row.size)


@cache
def _flops(net: str, batch_size: int, size: tuple[int, int]) -> int:
    return training_flops(nets.create_model(net), (batch_size, 3, size[1], size[0]))


def tidy() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU


def described(row: Experiment) -> dict[str, Any]:
    """What to say of a row beside its numbers."""
    return {"net": row.net, "size": row.size, "batch_size": row.batch_size}
