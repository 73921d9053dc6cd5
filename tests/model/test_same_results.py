"""What makes training fast leaves its results: beside a plain run of the same seed, in float32 and without a cache."""

import numpy as np
import pytest
import torch

from nets.arl_unet import arl_unet
from tests.small import CPU, SIZE, Segmenter, same
from utils.data.images import read_image, read_mask
from utils.data.loader import train_loader
from utils.data.transforms import SegmentationTransforms
from utils.device import Precision
from utils.loss import create_loss
from utils.model.trainer import Schedule, Trainer


class Uncached:
    """In place of a cache: every image is decoded anew each time it is asked for."""

    def __init__(self, cache) -> None:
        self.samples, self.size = cache.samples, cache.sizes[0][0]

    def image(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        return np.dstack([read_image(sample.image, self.size), read_mask(sample.mask, self.size)])


def trained(cache, model, dtype: torch.dtype | None = None, epochs: int = 3) -> tuple[Trainer, list[float]]:
    """The trainer after these epochs, and their losses."""
    torch.manual_seed(0)
    loader = train_loader(cache, SegmentationTransforms(SIZE), 6, 0, CPU, workers=0)
    schedule = Schedule(epochs, 1e-3, 1e-4, 9)
    trainer = Trainer(model, create_loss("dice_ce"), schedule, loader.batch_sampler.steps, Precision(CPU, dtype))
    losses = []
    for epoch in range(epochs):
        trainer.progress.epoch, trainer.progress.step, trainer.progress.loss = epoch, 0, 0.0
        losses.append(trainer.train_one_epoch(loader))
    return trainer, losses


def test_cached_pixels_change_no_bit(cache):
    one, other = (trained(each, Segmenter()) for each in (cache, Uncached(cache)))
    assert one[1] == other[1] and same(one[0].model.state_dict(), other[0].model.state_dict())


def test_bfloat16_and_the_compiled_function_learn_as_float32_does(cache):
    """The epochs' losses differ by up to 3 % here; another processor rounds in other places."""
    losses = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        losses.append(trained(cache, arl_unet(decoder_channels=(64, 32, 16, 16)), dtype)[1])
    plain, fast = losses
    assert fast == pytest.approx(plain, rel=0.1) and fast != plain and plain[-1] < 0.9 * plain[0]
