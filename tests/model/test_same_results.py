"""What makes training fast leaves its results: beside a plain run of the same seed, in float32, without the prepared
images, without the compiled ARL function, and one piece at a time."""

import numpy as np
import pytest
import torch

import nets
from nets.fast import kernel
from utils.data.cache import prepare
from utils.data.images import read_image, read_mask
from utils.data.isic import read_split
from utils.data.loader import train_loader
from utils.data.synthetic import make_synthetic
from utils.data.transforms import SegmentationTransforms
from utils.device import Precision
from utils.loss import create_loss
from utils.model.trainer import Progress, Schedule, Trainer

CPU = torch.device("cpu")
STORED, SIZE = (96, 72), (64, 48)


class Uncached:
    """In place of a cache: every image is decoded anew each time it is asked for."""

    def __init__(self, samples) -> None:
        self.samples = samples

    def image(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        return np.dstack([read_image(sample.image, STORED), read_mask(sample.mask, STORED)])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    make_synthetic(folder / "data", {"train": 16, "validation": 2, "test": 2}, (144, 108), seed=6)
    return folder, read_split(folder / "data", "train")


def losses(cache, dtype: torch.dtype | None, epochs: int = 4) -> list[float]:
    torch.manual_seed(0)
    loader = train_loader(cache, SegmentationTransforms(SIZE), 8, 0, CPU, workers=0)
    trainer = Trainer(
        nets.create_model("arl_unet"), create_loss("dice_ce"), Schedule(epochs, 1e-3, 1e-4, 9),
        loader.batch_sampler.steps, Precision(CPU, dtype),
    )  # fmt: skip
    found = []
    for epoch in range(epochs):
        trainer.progress = Progress(epoch)
        found.append(trainer.train_one_epoch(loader))
    return found


def test_a_run_in_float32_without_store_and_compiled_function_agrees(samples, monkeypatch):
    """Stored pixels change no bit; bfloat16 and the compiled function change a loss by 2 % at most in eight steps."""
    folder, images = samples
    cache = prepare(images, STORED, folder / "cache")
    fast = losses(cache, torch.bfloat16)
    monkeypatch.setattr(kernel, "load", lambda: None)
    plain = losses(Uncached(images), None)
    assert losses(cache, None) == plain
    assert fast == pytest.approx(plain, rel=0.02) and fast != plain
    assert plain[-1] < 0.9 * plain[0]
