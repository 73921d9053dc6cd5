"""One step and one schedule: what a step changes, and what it leaves alone."""

import pytest
import torch
from torch import nn

from tests.small import FLOAT32, Segmenter, a_trainer, same
from utils import UserError
from utils.device import find_device, find_precision
from utils.loss import Loss
from utils.model.trainer import Schedule


def a_batch(count: int = 4, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 2, (count, size, size), generator=generator)


class FaultyLoss(Loss):
    """The constant loss 2; in the given calls NaN, or with an infinite gradient."""

    def __init__(self, *calls: int, gradient: bool = False) -> None:
        super().__init__("ce")
        self.calls, self.gradient, self.count = calls, gradient, 0

    def forward(self, logits, targets):
        self.count += 1
        if self.count not in self.calls:
            return 0 * logits.sum() + 2
        return 2 + (logits - logits.detach()).sum().abs().sqrt() if self.gradient else logits.sum() * torch.nan


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone(optimizer, on_nan, gradient):
    """Also the very first one; the next one counts again. A schedule goes on with either."""
    trainer = a_trainer(criterion=FaultyLoss(1, gradient=gradient), optimizer=optimizer, on_nan=on_nan)
    trainer.model.train()
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    loss, finite = trainer.step([a_batch()])
    assert not finite and bool(loss.isfinite()) == gradient
    assert same(before, dict(trainer.model.named_parameters()))
    assert not any(moment.any() for state in trainer.optimizer.state.values() for moment in state.values())
    assert trainer.step([a_batch()])[1] and trainer.scheduler.last_epoch == 2


def test_running_statistics_survive_a_step_that_is_left_out():
    """An activation overflows before a batch norm, whose statistics would take it in for ever."""
    trainer = a_trainer(on_nan="skip")
    trainer.model.train()
    trainer.step([a_batch()])
    before = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    bias = trainer.model.block[0].bias
    bias.data.fill_(torch.inf)
    assert not trainer.step([a_batch()])[1] and same(before, dict(trainer.model.named_buffers()))
    bias.data.fill_(0.0)
    assert trainer.step([a_batch()])[1] and not same(before, dict(trainer.model.named_buffers()))


def test_one_image_at_a_time_may_be_too_little_for_batch_norm():
    trainer = a_trainer(model=nn.Sequential(nn.AdaptiveAvgPool2d(1), Segmenter()))
    trainer.model.train()
    images, _ = a_batch(1)
    with pytest.raises(UserError, match="batch norm needs more than one value per channel"):
        trainer.step([(images, torch.zeros(1, 1, 1, dtype=torch.long))])


def test_a_batch_that_does_not_fit_into_memory_is_one_line_that_names_accumulate():
    class NoRoom(Loss):
        def forward(self, logits, targets):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer = a_trainer(criterion=NoRoom("ce"))
    ways = {
        (8, 2): "of 4 does not fit into the memory of cpu: --accumulate 4 goes on ",
        (12, 4): "of 3 does not fit into the memory of cpu: --accumulate 12 goes on ",  # 8 would not share 12 evenly
        (2, 2): "of 1 does not fit into the memory of cpu: take a smaller --size",
    }
    for (images, parts), way in ways.items():
        images, targets = a_batch(images)
        with pytest.raises(UserError, match=f"^a micro-batch {way}"):
            trainer.step(list(zip(images.chunk(parts), targets.chunk(parts), strict=True)))


def test_the_learning_rate_falls_along_a_half_cosine_to_zero():
    optimizer, scheduler = Schedule(4, 1e-2, 0, 9).build(Segmenter(), 3, torch.device("cpu"))
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[::3] == pytest.approx([1e-2 * (1 + c) / 2 for c in (1, 2**-0.5, 0, -(2**-0.5))])
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9) and isinstance(optimizer, torch.optim.AdamW)


def test_the_papers_schedule_halves_every_30_epochs():
    """SGD with momentum (Zhang et al. 2019): the rate is the start's for epochs 1 to 30, half of it for 31 to 60 …"""
    optimizer, scheduler = Schedule(100, 0.01, 1e-4, 30, "sgd").build(Segmenter(), 2, torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.9
    rates = []
    for _ in range(100):
        rates.append(scheduler.get_last_lr()[0])
        for _ in range(2):
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx([0.01] * 30 + [0.005] * 30 + [0.0025] * 30 + [0.00125] * 10)


@pytest.mark.parametrize(
    ("device", "amp", "message"),
    [("cuda:99", "auto", "--device cuda:99"), ("cpu", "fp16", "--amp fp16")],
)
def test_device_and_precision_that_are_not_there(device, amp, message):
    with pytest.raises(UserError, match=message):
        find_precision(find_device(device), amp)
    assert find_precision(find_device("cpu"), "off") == FLOAT32
