"""What saves memory or time must not change results: gradients of micro-batches, compiled networks, kernels."""

import pytest
import torch
import torch._dynamo
from torch import nn

from nets.arl import ARLAttention
from tests.small import FLOAT32, Classifier, Segmenter
from utils.device import compile_network, use_deterministic_kernels
from utils.loss import create_loss
from utils.model.trainer import Schedule, Trainer

IMAGES = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
CLASSES = torch.tensor([0, 0, 2, 2, 1, 2, 2, 2])
RARE = (2.5, 2.5, 0.5)


class Attended(nn.Module):
    """An ARL block between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.residual, self.attention = nn.Conv2d(8, 8, 3, padding=1), ARLAttention()
        self.fc = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shortcut = self.stem(images)
        return self.fc(self.attention(self.residual(shortcut), shortcut, relu=True).mean((2, 3)))


def a_trainer(model: nn.Module, loss: str = "ce", weights: tuple[float, ...] | None = None) -> Trainer:
    return Trainer(model, create_loss(loss, class_weights=weights), Schedule(3, 1e-3, 1e-4, 9), 5, FLOAT32)


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


def broken(*_):
    raise RuntimeError("no compiler found")


@pytest.mark.parametrize("backend", ["aot_eager", broken])
def test_a_compiled_network_has_the_same_gradients(monkeypatch, backend):
    """Traced by Dynamo and AOTAutograd, computed by PyTorch: what torch.compile changes but for the kernels.

    Where it fails, PyTorch's own are taken.
    """
    models, compiling = (Attended(), Attended()), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiling(self, backend=backend))
    with torch._dynamo.config.patch(suppress_errors=False):
        compile_network(models[1])
        losses = [float(a_trainer(model.train()).step([(IMAGES, CLASSES)])[0]) for model in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for plain, compiled in zip(*(model.parameters() for model in models), strict=True):
        if plain.grad.abs().max() > 1e-6:  # a bias before batch norm has none but rounding
            assert float((plain.grad - compiled.grad).norm()) <= 1e-3 * float(plain.grad.norm())


def test_deterministic_kernels_train_on_a_cpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert a_trainer(Attended().train()).step([(IMAGES, CLASSES)])[1]
    finally:
        torch.use_deterministic_algorithms(False)
