"""Clocks and bounds, and the trainings that are timed: ours as the scripts build it, and plain ones."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from nets import create_model
from utils.config import Config
from utils.data.cache import ImageCache
from utils.data.isic import Sample
from utils.data.loader import MEAN, STD
from utils.data.transforms import Transforms
from utils.device import Precision
from utils.model.build import build_model, build_training
from utils.model.trainer import Progress
from utils.tasks import TASKS

Action = Callable[[], Any]


def interleave(actions: Mapping[str, Action], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of every action, `rounds` each after one that warms up, from an idle device to an idle device.

    They are taken in turn (A B A B …), so that a busy moment of the machine hits all of them.
    """
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda _: None
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(1 + rounds):
        for name, action in actions.items():
            wait(device)
            start = perf_counter()
            action()
            wait(device)
            seconds[name].append(perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def figure(seconds: Sequence[float], images: int, *limits: float, **costs: float) -> dict[str, float]:
    """Images a second by rounds of so many, and what share that is of the machine's bound, the lowest that there is.

    limits: what the machine reaches at all, a second; costs: how much of each an image takes, named in the result.
    """
    taken = median(seconds)
    speed, bound = images / taken, min(limit / each for limit, each in zip(limits, costs.values(), strict=True))
    result = {"seconds": taken, "seconds_min": min(seconds), "rounds": len(seconds), "images_per_second": speed}
    return result | costs | {"bound_images_per_second": bound, "share_of_bound": speed / bound}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The first over the second, round by round: their median, least and most."""
    pairs = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": median(pairs), "least": min(pairs), "most": max(pairs)}


def matrix_products(size: int, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Action, int]:
    """What multiplies two square matrices of `size` rows `count` times, and how many operations that are."""
    a, b, c = (torch.rand((3, size, size), device=device) - 0.5).to(dtype)

    def multiply() -> None:
        for _ in range(count):
            torch.mm(a, b, out=c)

    return multiply, count * 2 * size**3


def copy_rate(size: int, device: torch.device) -> float:
    """Bytes a second, read ones and written ones together, of copying `size` bytes within the device's memory."""
    source, target = torch.ones((2, size), dtype=torch.uint8, device=device)
    return 2 * size / median(interleave({"copy": lambda: target.copy_(source)}, device, 5)["copy"])


def costs(model: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Of forward and backward pass on images [B, 3, H, W] of that shape: floating-point operations, values moved.

    Those of convolutions and matrix products: a multiplication and an addition as two, and what each reads and writes
    but for its weights, once forward, once for the gradient of its weights and, if asked for, once for its input's.
    """
    moved = []

    def move(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        moved.append((2 + inputs[0].requires_grad) * (inputs[0].numel() + output.numel()))

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(move)
    mapping = {torch.ops.aten.convolution_backward: _of_gradients}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(torch.zeros(*shape)).sum().backward()
    return counter.get_total_flops(), sum(moved)


def _of_gradients(gradient, image, weight, _bias, _stride, _pad, _dilation, transposed, _more, _groups, wanted, **_):
    """Operations of a convolution's backward pass, by shapes; PyTorch's own count overlooks groups."""
    return sum(wanted[:2]) * 2 * math.prod(image if transposed else gradient) * math.prod(weight[1:])


@cache
def training_costs(net: str, size: tuple[int, int]) -> tuple[float, float]:
    """Operations and values of an image of that (width, height) in a training step of a network of `nets`."""
    both = costs(create_model(net), (2, 3, size[1], size[0]))  # batch norm wants two
    return both[0] / 2, both[1] / 2


class Training:
    """A row's training as the scripts build it, an epoch of it `steps` long: `images` of them."""

    def __init__(self, config: Config, samples: Sequence[Sample], precision: Precision, steps: int) -> None:
        torch.manual_seed(config.seed)
        task, (model, _) = TASKS[config.task](config), build_model(config)
        self.config, self.precision, self.images = config, precision, steps * config.batch_size
        images = repeated_cache(config, samples, self.images)
        made = build_training(config, model, task.loss(), images, task.transforms(), precision)
        self.trainer, self.loader = made
        first = next(iter(self.loader.batch_sampler))
        images, targets = self.loader.collate_fn([self.loader.dataset[key] for key in first])
        self.batch = images.to(precision.device), targets.to(precision.device)

    def epoch(self) -> None:
        self.trainer.train_one_epoch(self.loader)
        self.trainer.progress = Progress(self.trainer.progress.epoch + 1)

    def steps(self) -> None:
        """As many steps as an epoch has, all on its first batch, which is on the device: what no epoch can exceed."""
        for _ in range(self.loader.batch_sampler.steps):
            self.trainer.step([self.batch])


def repeated_cache(config: Config, samples: Sequence[Sample], count: int) -> ImageCache:
    """A row's training images, `count` of them: those of the samples over and over, in a file that holds them all."""
    few = TASKS[config.task](config).prepare({"train": samples})["train"]
    path, rows = few.path.with_stem(f"{few.path.stem}x{count}"), np.load(few.path, mmap_mode="r")
    if not path.exists():
        np.save(path, np.tile(rows, -(-count // len(samples))))
    again = (tuple(islice(cycle(each), count)) for each in (samples, few.sizes))
    return ImageCache(next(again), path, next(again), few.channels)


def plain_epoch(config: Config, model: nn.Module, optimizer: Optimizer, loader: Iterable) -> Action:
    """Training as simple code has it: float32, contiguous; loader: of (float32 [B, 3, H, W], class indices [B])."""
    device = next(model.parameters()).device
    criterion = TASKS[config.task](config).loss().to(device)

    def epoch() -> None:
        for images, targets in loader:
            loss = criterion(model(images.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def earlier_epoch(config: Config, samples: Sequence[Sample], device: torch.device) -> Action:
    """A row of classification as the earlier project trained, its process reading originals; the network is ours."""
    originals, model = Originals(samples, TASKS[config.task](config).transforms()), build_model(config)[0].to(device)
    optimizer = AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return plain_epoch(config, model, optimizer, DataLoader(originals, config.batch_size, shuffle=True))


def torchvision_epoch(config: Config, steps: int, device: torch.device) -> Action:
    """torchvision's ResNet-50 with the optimizer of its reference training, on a batch of noise that is there."""
    from torchvision.models import resnet50  # imports slowly

    model = resnet50(num_classes=3).to(device)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.randn((config.batch_size, 3, config.size[1], config.size[0]), device=device)
    targets = torch.zeros(config.batch_size, dtype=torch.long, device=device)
    return plain_epoch(config, model, optimizer, [(images, targets)] * steps)


class Originals(Dataset):
    """Originals that OpenCV decodes anew each time: a view of `transforms`, normalised float32 [3, H, W]; a class."""

    def __init__(self, samples: Sequence[Sample], transforms: Transforms) -> None:
        self.samples, self.transforms, self.drawn = samples, transforms, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.drawn += 1
        pixels = cv2.cvtColor(cv2.imread(str(self.samples[index].image)), cv2.COLOR_BGR2RGB)
        pixels, label = self.transforms(pixels, self.samples[index], self.drawn)
        image = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), label
