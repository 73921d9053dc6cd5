"""What saves memory or time must not change results: gradients of micro-batches, deterministic kernels."""

import pytest
import torch
from torch import nn

from tests.small import FLOAT32, Classifier, Segmenter
from utils.device import use_deterministic_kernels
from utils.loss import Loss
from utils.model.trainer import Schedule, Trainer

IMAGES = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
CLASSES = torch.tensor([0, 0, 2, 2, 1, 2, 2, 2])
RARE = (2.5, 2.5, 0.5)


def a_trainer(model: nn.Module, loss: str = "ce", weights: tuple[float, ...] | None = None) -> Trainer:
    return Trainer(model, Loss(loss, weights), Schedule(3, 1e-3, 1e-4, 9), 5, FLOAT32)


@pytest.mark.parametrize("weights", [None, RARE])
@pytest.mark.parametrize(
    ("net", "loss", "targets"),
    [
        (Classifier, "ce", CLASSES),
        (Classifier, "focal", CLASSES),
        (Segmenter, "focal", CLASSES[:, None, None].repeat(1, 16, 16)),
    ],
)
def test_gradients_of_micro_batches_add_up(net, loss, targets, weights):
    """To those of the whole batch, but for rounding: relative to each one's size. Batch statistics are left aside.

    A class that is rare in one micro-batch and frequent in another counts as in the whole batch.
    """
    results = []
    for parts in ((8,), (2, 4, 2)):
        trainer = a_trainer(net(3).eval(), loss, weights)
        value, _ = trainer.step(list(zip(IMAGES.split(parts), targets.split(parts), strict=True)))
        results.append((float(value), [parameter.grad for parameter in trainer.model.parameters()]))
    (one, gradients), (several, others) = results
    assert one == pytest.approx(several, rel=1e-5)
    for a, b in zip(gradients, others, strict=True):
        assert a.any() and float((a - b).norm()) <= 1e-4 * float(a.norm())


def test_deterministic_kernels_train_on_a_cpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert a_trainer(Classifier()).step([(IMAGES, CLASSES)])[1]
    finally:
        torch.use_deterministic_algorithms(False)
