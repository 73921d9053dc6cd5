"""What saves memory or time must not change results: recomputed activations, gradients in pieces, compiled networks."""

import copy
import logging

import pytest
import torch
from torch import nn

import nets
from utils import UserError
from utils.data.loader import to_input
from utils.device import Precision, compile_network, recompute_activations, use_deterministic_kernels
from utils.loss import create_loss
from utils.model.trainer import Schedule, Trainer

FLOAT32 = Precision(torch.device("cpu"), None)
NETS = ("unet", "dense_unet", "res_unet", "arl_unet", "mobilenet_unet", "resnet18", "arl50", "arl_mobilenet")


def a_batch(net: str, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)
    shape = (count, 64, 64) if net.endswith("unet") else (count,)
    return images, torch.randint(0, 2, shape, generator=generator)


def a_trainer(model: nn.Module, **options) -> Trainer:
    return Trainer(model, create_loss("ce"), Schedule(3, 1e-3, 1e-4, 9), 5, FLOAT32, **options)


def a_model(net: str) -> nn.Module:
    torch.manual_seed(0)
    return nets.create_model(net)


@pytest.mark.parametrize("net", NETS)
def test_recomputed_activations_change_nothing(net):
    """Bit for bit: loss, weights after two steps, running statistics and how many batches they have seen."""
    model = a_model(net)
    other = copy.deepcopy(model)
    blocks = recompute_activations(other)
    assert blocks >= 4
    losses = []
    for each in (model, other):
        torch.manual_seed(1)  # of dropout
        trainer = a_trainer(each)
        each.train()
        losses.append([float(trainer.step([a_batch(net)])[0]) for _ in range(2)])
    assert losses[0] == losses[1]
    first, second = model.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_recomputing_keeps_less():
    """Of a ResNet-18 less than half of the values: the inputs of its eight blocks, and its stem."""
    kept = []
    for recomputed in (False, True):
        model, total = a_model("resnet18"), 0
        if recomputed:
            recompute_activations(model)

        def count(tensor):
            nonlocal total
            total += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.train()(to_input(a_batch("resnet18")[0], torch.device("cpu")))
        kept.append(total)
    assert 0 < kept[1] < kept[0] / 2


@pytest.mark.parametrize("net", ["unet", "resnet18"])
def test_gradients_of_pieces_add_up(net):
    """Without batch statistics in the way a batch in four pieces is the batch in one, to float32's rounding."""
    images, targets = a_batch(net, 8)
    results = []
    for parts in (1, 4):
        model = a_model(net).eval()
        trainer = a_trainer(model)
        losses = [
            float(trainer.step(list(zip(images.chunk(parts), targets.chunk(parts), strict=True)))[0]) for _ in range(3)
        ]
        results.append((losses, model.state_dict()))
    (one, weights), (four, others) = results
    assert one == pytest.approx(four, abs=1e-4)
    assert all(torch.allclose(tensor, others[name], atol=1e-3) for name, tensor in weights.items())


@pytest.mark.parametrize("loss", ["ce", "focal"])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (5, 3)])
def test_gradients_of_pieces_add_up_with_class_weights(loss, sizes):
    """A class that is rare in one piece and frequent in another counts as in the whole batch."""
    images, _ = a_batch("resnet18", 8)
    targets = torch.tensor([0, 0, 2, 2, 1, 2, 2, 2])
    results = []
    for parts in ((8,), sizes):
        trainer = a_trainer(a_model("resnet18").eval())
        trainer.criterion = create_loss(loss, class_weights=(2.5, 2.5, 0.5))
        value, _ = trainer.step(list(zip(images.split(parts), targets.split(parts), strict=True)))
        results.append((float(value), [parameter.grad for parameter in trainer.model.parameters()]))
    (one, gradients), (several, others) = results
    assert one == pytest.approx(several, rel=1e-5)
    for a, b in zip(gradients, others, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(a.norm())


class NoRoom(nn.Module):
    """A loss that runs out of memory with more than so many images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, logits, targets):
        if len(targets) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(targets))
        return nn.functional.cross_entropy(logits, targets)


@pytest.mark.fault("a GPU's memory does not hold the batch", "halved once, with a line")
def test_out_of_memory_halves_the_pieces_once_and_says_so(caplog):
    model = a_model("resnet18")
    trainer = Trainer(model, NoRoom(4), Schedule(3, 1e-3, 1e-4, 9), 5, FLOAT32)
    model.train()
    with caplog.at_level(logging.WARNING, "isic2017"):
        for _ in range(2):
            trainer.step([a_batch("resnet18", 8)])
    assert trainer.criterion.seen == [4, 4, 4, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "8 images at a time do not fit into the GPU's memory: 4 from here on"
    ]


@pytest.mark.fault("the half does not fit either", "a line that says what to do, exit code 2")
def test_out_of_memory_again_says_what_to_do():
    trainer = Trainer(a_model("resnet18"), NoRoom(1), Schedule(3, 1e-3, 1e-4, 9), 5, FLOAT32)
    with pytest.raises(UserError, match="4 images at a time do not fit into the memory of cpu: try --accumulate 4, "):
        trainer.step([a_batch("resnet18", 8)])


def test_a_step_that_is_not_finite_leaves_the_weights_alone():
    model = a_model("resnet18")
    trainer = a_trainer(model)
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer.criterion = lambda logits, targets: (logits * torch.inf).mean()
    _, finite = trainer.step([a_batch("resnet18")])
    assert not finite
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    trainer.criterion = create_loss("ce")
    assert trainer.step([a_batch("resnet18")])[1]


def test_compiling_that_fails_leaves_the_network_as_it_was(monkeypatch, caplog):
    """One line in the log, the same weights, statistics and random state, and it trains."""
    model = a_model("resnet18")
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def broken(self, *_, **__):
        def fail(*_):
            raise RuntimeError("\nno compiler found\nmore lines")

        self._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", broken)
    images = to_input(a_batch("resnet18")[0], torch.device("cpu"))
    with caplog.at_level(logging.WARNING, "isic2017"):
        assert not compile_network(model, images, FLOAT32)
    assert caplog.messages == ["torch.compile failed, going on without it: no compiler found"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert a_trainer(model.train()).step([a_batch("resnet18")])[1]


def test_a_compiled_network_has_the_same_gradients(monkeypatch):
    """Traced by Dynamo and AOTAutograd, computed by PyTorch: what torch.compile changes but for the kernels."""
    compiling = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiling(self, backend="aot_eager"))
    batch, models = a_batch("arl14"), [a_model("arl14"), a_model("arl14")]
    before = copy.deepcopy(models[1].state_dict())
    assert compile_network(models[1], to_input(batch[0], torch.device("cpu")), FLOAT32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in models[1].state_dict().items())
    losses = [float(a_trainer(model.train()).step([batch])[0]) for model in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    pairs = list(zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(torch.allclose(plain.grad, compiled.grad, rtol=1e-3, atol=1e-5) for plain, compiled in pairs)
    assert all(compiled.grad.any() for _, compiled in pairs)


@pytest.mark.parametrize("net", ["arl_unet", "arl50"])
def test_deterministic_kernels_train_every_part(net, monkeypatch):
    """And on a CPU to the same bits as without, where all kernels are such."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    losses = []
    for deterministic in (False, True):
        if deterministic:
            use_deterministic_kernels()
        try:
            model = a_model(net)
            trainer = a_trainer(model)
            model.train()
            losses.append([float(trainer.step([a_batch(net)])[0]) for _ in range(2)])
        finally:
            torch.use_deterministic_algorithms(False)
    assert losses[0] == losses[1]
