"""What tests of training share: networks of two layers, a training of seconds, and the end of a script."""

import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.data.loader import train_loader
from utils.data.transforms import SegmentationTransforms
from utils.device import Precision
from utils.logger import log, run_script
from utils.loss import Loss
from utils.model.fit import fit
from utils.model.trainer import Schedule, Trainer

CPU = torch.device("cpu")
FLOAT32 = Precision(CPU, None)
SIZE = (32, 32)
CLOCK = ["train_seconds", "images_per_second"]  # columns of the history that a clock wrote


class Segmenter(nn.Module):
    """Has what a continued run can get wrong, if not `plain`: running statistics, and dropout's random numbers.

    Attributes:
        at: what happens in training steps of these numbers, counted from 1 in a network's life.
    """

    at: ClassVar[dict[int, Callable[[], object]]] = {}
    last_layers = ("block",)

    def __init__(self, num_classes: int = 2, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = 0
        layers = [nn.ReLU()] if plain else [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout()]
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers)
        self.head = nn.Conv2d(8, num_classes, 1)

    def features(self, images: Tensor) -> list[Tensor]:
        self.steps += self.training
        if self.training and self.steps in self.at:
            self.at[self.steps]()
        return [self.block(images)]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[-1])


class Classifier(Segmenter):
    def __init__(self, num_classes: int = 3, plain: bool = False) -> None:
        super().__init__(plain=plain)
        self.head, self.fc = nn.Identity(), nn.Linear(8, num_classes)

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(super().forward(images))


class Stopped(Exception):
    """Stands for a kill."""


def a_trainer(steps: int = 3, *, epochs: int = 3, model: nn.Module | None = None, criterion=None, **options) -> Trainer:
    """options: of `Schedule` and `Trainer`."""
    own = [options.pop(name, default) for name, default in (("on_nan", "stop"), ("record", None))]
    schedule = Schedule(epochs, **{"lr": 1e-2, "weight_decay": 1e-4, "patience": 99} | options)
    return Trainer(model or Segmenter(), criterion or Loss("dice_ce"), schedule, steps, FLOAT32, *own)


def train(run, cache, scores: Sequence[float | type], *, workers: int = 0, **options) -> Trainer:
    """An epoch of three steps for each of the validation scores; one that is an exception is raised in its place."""
    loader = train_loader(cache, SegmentationTransforms(SIZE), 4, 0, CPU, workers)
    trainer = a_trainer(loader.batch_sampler.steps, epochs=len(scores), **options)

    def validate(_: nn.Module) -> tuple[float, dict[str, float]]:
        score = scores[trainer.progress.epoch]
        if not isinstance(score, float):
            raise score
        return score, {"val_score": score}

    fit(trainer, loader, validate, run)
    return trainer


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all tensors are the same to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steady(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history without the columns that a clock wrote."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in history]


def exit_code(main: Callable[[], object]) -> int:
    """Of a script with this main function, run in this process; what `run_script` changes there is put back."""
    streams, logging = (sys.stdout, sys.stderr), (log.handlers, log.propagate, log.level)
    try:
        run_script(main)
    except SystemExit as end:
        return end.code
    finally:
        (sys.stdout, sys.stderr), (log.handlers, log.propagate, level) = streams, logging
        log.setLevel(level)
    return 0
