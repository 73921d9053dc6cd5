"""Maps of where a classifier looks: what each one must add up to, and that taking one leaves no trace on the model."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nets
from utils.inference.saliency import attention_maps, class_activation_maps, grad_cam


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@cache
def classifier(name: str, **options) -> nn.Module:
    """In eval mode, with an α large enough to show and a bias; not to be changed by a test."""
    torch.manual_seed(0)
    model = nets.create_model(name, **options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(parameter, 2.0)
    nn.init.normal_([*model.parameters()][-1])
    return model


class Tiny(nn.Module):
    """Two convolutions with in-place ReLUs, global average pool, one linear layer."""

    def __init__(self, channels: int = 5, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.relu(self.conv2(self.relu(self.conv1(x))))]

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(x)[-1])


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4"), ("arl14", "layer4"), ("timm/tf_efficientnet_lite0", "backbone.bn2")]
)
def test_cam_averages_to_the_logit_and_grad_cam_is_its_positive_part(name, layer):
    """Under average pooling and a linear layer the gradient is w/(h·w) everywhere."""
    model, x = classifier(name), images(2, 3, 64, 96)
    logits, cams = model(x), []
    for classes in (1, torch.tensor([2, 0])):
        cam, maps = class_activation_maps(model, x, classes), grad_cam(model, x, layer, classes)
        assert cam.shape == maps.shape == (2, 2, 3) and not cam.requires_grad and not maps.requires_grad
        chosen = torch.as_tensor(classes).expand(2)
        means = cam.mean((1, 2)) + [*model.parameters()][-1][chosen]
        assert torch.allclose(means, logits[torch.arange(2), chosen], rtol=1e-4, atol=1e-4)
        assert torch.allclose(maps, cam.relu() / 6, rtol=1e-4, atol=1e-5)
        cams.append(cam)
    assert torch.cat(cams).min() < 0 < torch.cat(cams).max()


def test_grad_cam_at_an_earlier_layer_by_hand():
    """Each image alone, no hook, no in-place operation; "conv1" is taken before the ReLU that overwrites it."""
    torch.manual_seed(0)
    model, x, classes = Tiny().eval(), images(3, 3, 12, 10), torch.tensor([2, 0, 1])
    for layer, name in enumerate(("conv1", "conv2")):
        maps = grad_cam(model, x, name, classes)
        for i in range(3):
            outputs = [F.conv2d(x[i : i + 1], model.conv1.weight, model.conv1.bias, padding=1)]
            hidden = torch.relu(outputs[0])
            outputs.append(F.conv2d(hidden, model.conv2.weight, model.conv2.bias, stride=2, padding=1))
            logits = F.linear(torch.relu(outputs[1]).mean((2, 3)), model.fc.weight, model.fc.bias)[0]
            gradient = torch.autograd.grad(logits[classes[i]], outputs[layer])[0][0]
            expected = (gradient.mean((1, 2), keepdim=True) * outputs[layer][0].detach()).sum(0).clamp(min=0)
            assert expected.max() > 0 and torch.allclose(maps[i], expected, rtol=1e-4, atol=1e-7), (name, i)


@pytest.mark.parametrize("alpha", ["learn", 0])
def test_attention_of_every_block_in_order(alpha):
    maps = attention_maps(classifier("arl18", alpha=alpha), images(2, 3, 64, 96))
    assert list(maps) == [f"layer{level}.{i}" for level in (1, 2, 3, 4) for i in (0, 1)]
    for block, weights in maps.items():
        stride = 2 ** (1 + int(block[5]))
        assert weights.shape == (2, 64 // stride, 96 // stride) and weights.dtype == torch.float32
        assert torch.allclose(weights.sum((1, 2)), torch.ones(2), atol=1e-5)
        assert not weights.requires_grad and (weights >= 0).all()
    assert attention_maps(classifier("resnet18"), images(1, 3, 32, 32)) == {}


@pytest.mark.parametrize("attention", ["spatial", "channel"])
def test_attention_is_the_softmax_of_the_residual(attention):
    model, x = classifier("arl18", attention=attention), images(2, 3, 64, 96)
    with torch.no_grad():
        inside, block = model.maxpool(model.features(x)[0]), model.layer1[0]
        residual = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(inside)))))
    of_positions = residual.flatten(2).softmax(-1).view_as(residual).mean(1)
    expected = of_positions if attention == "spatial" else residual.softmax(1).amax(1)
    assert torch.allclose(attention_maps(model, x)["layer1.0"], expected, rtol=1e-4, atol=1e-7)


def test_a_model_in_training_gives_the_same_maps_and_keeps_its_gradients():
    model, x = classifier("arl14"), images(2, 3, 32, 32)
    used = copy.deepcopy(model).train()
    used(x).sum().backward()
    used.load_state_dict(model.state_dict())
    before = [parameter.grad.clone() for parameter in used.parameters()]
    for take in (lambda m: class_activation_maps(m, x, 1), lambda m: grad_cam(m, x, "layer3", 1)):
        assert torch.equal(take(used.train()), take(model))
    for maps, expected in zip(attention_maps(used.train(), x).values(), attention_maps(model, x).values(), strict=True):
        assert torch.equal(maps, expected)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(used.parameters(), before, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in used.modules())
