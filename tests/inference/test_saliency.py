"""Maps of where a classifier looks: what each one must add up to, and that taking one leaves no trace on the model."""

import copy
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nets
from nets.arl import ARLAttention
from nets.resnet import ResNet
from utils.inference.saliency import attention_maps, class_activation_maps, grad_cam

FUNCTIONS = {
    "cam": class_activation_maps,
    "grad_cam": lambda model, images: grad_cam(model, images, "layer3"),
    "attention": attention_maps,
}


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
    ("name", "layer"),
    [("resnet18", "layer4"), ("arl14", "layer4"), ("arl50", "layer4"), ("timm/tf_efficientnet_lite0", "backbone.bn2")],
)
def test_cam_averages_to_the_logit_and_grad_cam_is_its_positive_part(name, layer):
    """Under average pooling and a linear layer the gradient is w/(h·w) everywhere."""
    model, x = classifier(name), images(2, 3, 64, 96)
    logits, cams = model(x), []
    for classes in (None, 1, [2, 0]):
        cam, maps = class_activation_maps(model, x, classes), grad_cam(model, x, layer, classes)
        assert cam.shape == maps.shape == (2, 2, 3) and not cam.requires_grad and not maps.requires_grad
        chosen = logits.argmax(1) if classes is None else torch.tensor(classes).expand(2)
        means = cam.mean((1, 2)) + [*model.parameters()][-1][chosen]
        assert torch.allclose(means, logits[torch.arange(2), chosen], rtol=1e-4, atol=1e-4)
        assert torch.allclose(maps, cam.relu() / 6, rtol=1e-4, atol=1e-5)
        cams.append(cam)
    assert torch.cat(cams).min() < 0 < torch.cat(cams).max()


def test_grad_cam_at_an_earlier_layer_by_hand():
    """Each image alone, no hook, no in-place operation; "conv1" is taken before the ReLU that overwrites it."""
    torch.manual_seed(0)
    model, x, classes = Tiny().eval(), images(3, 3, 12, 10), [2, 0, 1]
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


def test_every_layer_with_a_map_can_be_chosen():
    """Layers before an in-place ReLU, inside a block, and an attention that is off, too."""
    model, x = classifier("arl18"), images(1, 3, 64, 64)
    sizes = {"conv1": 32, "relu": 32, "layer2.0.downsample": 8, "layer3.1.relu": 4, "layer1.0.attention": 16}
    for layer, size in sizes.items():
        maps = grad_cam(model, x, layer, 0)
        assert maps.shape == (1, size, size) and torch.isfinite(maps).all() and (maps >= 0).all()
    # The last of a block's ReLUs puts out what the block puts out; the attention's sum has one of its own.
    for net, last in ((classifier("resnet18"), "layer3.1.relu"), (model, "layer3.1.attention")):
        assert torch.equal(grad_cam(net, x, last, 0), grad_cam(net, x, "layer3.1", 0))
    assert grad_cam(classifier("arl18", alpha=0), x, "layer1.0.attention").shape == (1, 16, 16)


@pytest.mark.parametrize("function", [class_activation_maps, lambda m, x, classes: grad_cam(m, x, "conv2", classes)])
def test_classes_in_every_form(function):
    torch.manual_seed(0)
    model, x = Tiny().eval(), images(4, 3, 8, 8)
    with torch.no_grad():
        model.fc.bias -= model(x).mean(0)
        predicted = model(x).argmax(1)
    assert len(set(predicted.tolist())) > 1
    best = function(model, x, None)
    for classes in (predicted, predicted.tolist(), predicted.numpy(), predicted.byte()):
        assert torch.equal(function(model, x, classes), best)
    for classes in (2, np.int64(2), torch.tensor(2)):
        assert torch.equal(function(model, x, classes), function(model, x, [2, 2, 2, 2]))
    assert not torch.equal(function(model, x, 2), function(model, x, 1))
    for classes in (3, -1, [0, 1], [0, 1, 2, 3], 1.0, [[0, 1, 2, 0]]):
        with pytest.raises(ValueError, match="one or 4 whole numbers from 0 to 2"):
            function(model, x, classes)


def test_what_has_no_map():
    for layer in ("layer9", "fc", ""):
        with pytest.raises(ValueError, match=f"layer '{layer}' .*conv1, .*layer2.0, .*layer4, or a module inside one$"):
            grad_cam(classifier("resnet18"), images(1, 3, 32, 32), layer)


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


def state(model: nn.Module) -> dict:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [[*getattr(module, kind).values()] for module in model.modules() for kind in hooks],
        "grads": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
    }


def used_model() -> nn.Module:
    """As in the middle of a training: mixed modes and flags, gradients, somebody's own hook."""
    torch.manual_seed(0)
    model = ResNet((1, 1, 1, 1), bottleneck=False, attention=ARLAttention).train()
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    model(images(2, 3, 32, 32)).sum().backward()
    model.layer3.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_leaves_no_trace(name):
    model, x = used_model(), images(2, 3, 32, 32)
    before = state(model)
    FUNCTIONS[name](model, x)
    assert state(model) == before
    with pytest.raises(RuntimeError, match="channels"):
        FUNCTIONS[name](model, images(2, 4, 32, 32))
    for arguments in (("layer9",), ("layer3", 7), ("layer3", [0])):
        with pytest.raises(ValueError, match=r"layer9|classes"):
            grad_cam(model, x, *arguments)
    assert state(model) == before and torch.is_grad_enabled()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_maps_in_any_surroundings(name):
    """Training mode, frozen parameters, no_grad, inference mode, autocast: float32 in eval mode all the same."""

    def values(model, x):
        result = FUNCTIONS[name](model, x)
        tensors = list(result.values()) if isinstance(result, dict) else [result]
        assert not any(t.is_inference() or t.requires_grad or t.dtype != torch.float32 for t in tensors)
        return torch.cat([tensor.flatten() for tensor in tensors])

    model, x = classifier("arl14"), images(2, 3, 32, 32)
    expected = values(model, x)
    for other in (copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).train()):
        assert torch.equal(values(other, x), expected)
    for surroundings in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with surroundings:
            assert torch.equal(values(model, x.clone()), expected)  # the images are inference tensors, too
    assert torch.equal(values(model, x.double()), expected)


def squares(count: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a square, red (class 0) or green (1), at a random place; its class; a mask of it, bool."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((count, 3, side, side), generator=generator) * 0.3
    labels, masks = torch.arange(count) % 2, torch.zeros(count, side, side, dtype=torch.bool)
    for i, (top, left) in enumerate(torch.randint(0, side - 10, (count, 2), generator=generator).tolist()):
        masks[i, top : top + 10, left : left + 10] = True
        x[i, int(labels[i]), masks[i]] += 2
    return x, labels, masks


def test_maps_find_what_the_class_depends_on():
    torch.manual_seed(0)
    model, (x, labels, masks) = Tiny(8, 2), squares(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).all()
    enlarge = partial(F.interpolate, size=(32, 32), mode="bilinear")
    for maps in (class_activation_maps(model, x, labels), grad_cam(model, x, "conv2", labels)):
        heats = enlarge(maps.clamp(0)[:, None])[:, 0]
        shares = (heats * masks).sum((1, 2)) / heats.sum((1, 2))  # of what speaks for the class, inside the square
        assert shares.mean() > 5 * masks.float().mean() and shares.min() > 2 * masks.float().mean()
    other = enlarge(class_activation_maps(model, x, 1 - labels)[:, None])[:, 0]  # which sees nothing there
    assert other[masks].mean() < 0
