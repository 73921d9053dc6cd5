"""Maps of where a classifier looks: what each one must add up to, and that taking one leaves no trace on the model."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cls_main
import nets
from nets.arl import ARLAttention
from nets.resnet import ResNet
from utils.data.images import read_image, read_mask
from utils.data.isic import read_split
from utils.data.loader import to_input
from utils.data.synthetic import make_synthetic
from utils.inference.saliency import attention_maps, class_activation_maps, grad_cam, mass_inside, to_image_size

FUNCTIONS = {
    "cam": class_activation_maps,
    "grad_cam": lambda model, images: grad_cam(model, images, "layer3"),
    "attention": attention_maps,
}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def classifier(name: str, **options) -> nn.Module:
    """In eval mode, with batch norms as after training and an α large enough to show; not to be changed by a test."""
    torch.manual_seed(0)
    model = nets.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(parameter, 2.0)
    nn.init.normal_(model.fc.bias)
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x)[-1].mean((2, 3)))


# ------------------------------------------------------------------------------------------------- CAM, Grad-CAM


@pytest.mark.parametrize("name", ["resnet18", "arl18", "arl50"])
@pytest.mark.parametrize("classes", [None, 1, [2, 0, 2]])
def test_cam_averages_to_the_logit(name, classes):
    model, x = classifier(name), images(3, 3, 64, 96)
    maps = class_activation_maps(model, x, classes)
    assert maps.shape == (3, 2, 3) and maps.dtype == torch.float32 and not maps.requires_grad
    with torch.no_grad():
        logits = model(x)
    chosen = logits.argmax(1) if classes is None else torch.tensor(classes).expand(3)
    bias = model.fc.bias.detach()[chosen]
    assert torch.allclose(maps.mean((1, 2)) + bias, logits[torch.arange(3), chosen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "arl18", "arl50"])
def test_grad_cam_at_the_last_layer_is_the_positive_part_of_cam(name):
    """Under average pooling and a linear layer the gradient is w/(h·w) everywhere."""
    model, x = classifier(name), images(2, 3, 64, 96)
    cams = [class_activation_maps(model, x, classes) for classes in (None, [0, 2], [1, 1])]
    assert min(cam.min() for cam in cams) < 0 < max(cam.max() for cam in cams)
    for classes, cam in zip((None, [0, 2], [1, 1]), cams, strict=True):
        maps = grad_cam(model, x, "layer4", classes)
        assert maps.dtype == torch.float32 and not maps.requires_grad
        assert torch.allclose(maps, cam.relu() / 6, rtol=1e-4, atol=1e-5)


def test_grad_cam_at_an_earlier_layer_by_hand():
    """Each image alone, no hook, no in-place operation; "conv1" is taken before the ReLU that overwrites it."""
    torch.manual_seed(0)
    model, x = Tiny().eval(), images(3, 3, 12, 10)
    for layer, name in ((0, "conv1"), (1, "conv2")):
        for classes in ([2, 0, 1], 1):
            maps = grad_cam(model, x, name, classes)
            for i in range(3):
                outputs = [F.conv2d(x[i : i + 1], model.conv1.weight, model.conv1.bias, padding=1)]
                hidden = torch.relu(outputs[0])
                outputs.append(F.conv2d(hidden, model.conv2.weight, model.conv2.bias, stride=2, padding=1))
                logits = F.linear(torch.relu(outputs[1]).mean((2, 3)), model.fc.weight, model.fc.bias)[0]
                target = logits[classes if classes == 1 else classes[i]]
                gradient = torch.autograd.grad(target, outputs[layer])[0][0]
                expected = sum(g.mean() * a for g, a in zip(gradient, outputs[layer][0].detach(), strict=True)).clamp(
                    min=0
                )
                assert expected.max() > 0
                assert torch.allclose(maps[i], expected, rtol=1e-4, atol=1e-7), (name, i)


@pytest.mark.parametrize("name", ["resnet18", "arl50"])
def test_grad_cam_inside_a_network(name):
    model, x = classifier(name), images(2, 3, 64, 64)
    start = model.maxpool(model.features(x)[0])
    activation = model.layer2[0](model.layer1(start)).detach().requires_grad_()
    last = model.layer4(model.layer3(model.layer2[1:](activation)))
    logits = model.fc(last.mean((2, 3)))
    gradient = torch.autograd.grad(logits[:, 1].sum(), activation)[0]
    expected = (gradient.mean((2, 3), keepdim=True) * activation.detach()).sum(1).relu()
    maps = grad_cam(model, x, "layer2.0", 1)
    assert maps.shape == (2, 8, 8) and maps.max() > 0
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_every_layer_with_a_map_can_be_chosen():
    """Layers before an in-place ReLU, inside a block, and an attention that is off, too."""
    model, x = classifier("arl18"), images(1, 3, 64, 64)
    for layer, size in [("conv1", 32), ("bn1", 32), ("relu", 32), ("maxpool", 16), ("layer2.0.downsample", 8),
                        ("layer2.1.bn2", 8), ("layer3.1.relu", 4), ("layer1.0.attention", 16)]:  # fmt: skip
        maps = grad_cam(model, x, layer, 0)
        assert maps.shape == (1, size, size) and torch.isfinite(maps).all() and (maps >= 0).all()
    # The last of a block's ReLUs puts out what the block puts out; the attention's sum has one of its own.
    for net, last in ((classifier("resnet18"), "layer3.1.relu"), (model, "layer3.1.attention")):
        assert torch.equal(grad_cam(net, x, last, 0), grad_cam(net, x, "layer3.1", 0))
    assert not torch.equal(grad_cam(model, x, "layer3.1.relu", 0), grad_cam(model, x, "layer3.1", 0))
    assert grad_cam(classifier("arl18", alpha=0), x, "layer1.0.attention").shape == (1, 16, 16)


@pytest.mark.parametrize(
    "function", [class_activation_maps, lambda *args: grad_cam(args[0], args[1], "conv2", args[2])]
)
def test_classes_in_every_form(function):
    torch.manual_seed(0)
    model, x = Tiny().eval(), images(4, 3, 8, 8)
    with torch.no_grad():
        model.fc.bias -= model(x).mean(0)
        predicted = model(x).argmax(1)
    assert len(set(predicted.tolist())) > 1
    best = function(model, x, None)
    for classes in (predicted, predicted.tolist(), predicted.numpy(), tuple(predicted.tolist()), predicted.byte()):
        assert torch.equal(function(model, x, classes), best)
    for classes in (2, np.int64(2), torch.tensor(2)):
        assert torch.equal(function(model, x, classes), function(model, x, [2, 2, 2, 2]))
    assert not torch.equal(function(model, x, 2), function(model, x, 1))
    for classes in (3, -1, [0, 1], [0, 1, 2, 3], 1.0, [[0, 1, 2, 0]]):
        with pytest.raises(ValueError, match="one or 4 whole numbers from 0 to 2"):
            function(model, x, classes)


@pytest.mark.parametrize("layer", ["layer9", "fc", "", "layer1.7"])
def test_unknown_layer_names_the_possible_ones(layer):
    with pytest.raises(
        ValueError, match=f"layer '{layer}' .*conv1, bn1, .*layer2.0, .*layer4, or a module inside"
    ) as e:
        grad_cam(classifier("resnet18"), images(1, 3, 32, 32), layer)
    assert "fc" not in str(e.value).removeprefix("layer 'fc'")


def test_cam_without_a_classifier():
    with pytest.raises(ValueError, match="no linear layer `fc`"):
        class_activation_maps(ResNet((1, 1), bottleneck=False, num_classes=None), images(1, 3, 32, 32))


# ------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("name,counts", [("arl14", (1, 1, 1, 1)), ("arl18", (2, 2, 2, 2)), ("arl50", (3, 4, 6, 3))])
@pytest.mark.parametrize("alpha", ["learn", 0])
def test_attention_of_every_block_in_order(name, counts, alpha):
    maps = attention_maps(classifier(name, alpha=alpha), images(2, 3, 64, 96))
    assert list(maps) == [f"layer{level}.{i}" for level, count in enumerate(counts, 1) for i in range(count)]
    for block, weights in maps.items():
        stride = 2 ** (1 + int(block[5]))
        assert weights.shape == (2, 64 // stride, 96 // stride) and weights.dtype == torch.float32
        assert torch.allclose(weights.sum((1, 2)), torch.ones(2), atol=1e-5)
        assert not weights.requires_grad and (weights >= 0).all()


@pytest.mark.parametrize("attention", ["spatial", "channel"])
def test_attention_is_the_softmax_of_the_residual(attention):
    model, x = classifier("arl18", attention=attention), images(2, 3, 64, 96)
    block = model.layer1[0]
    with torch.no_grad():
        inside = model.maxpool(model.features(x)[0])
        residual = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(inside)))))
    if attention == "spatial":
        expected = residual.flatten(2).softmax(-1).mean(1).view(2, 16, 24)
    else:
        expected = residual.softmax(1).max(1).values
    assert torch.allclose(attention_maps(model, x)["layer1.0"], expected, rtol=1e-4, atol=1e-7)


def test_plain_network_has_no_attention():
    assert attention_maps(classifier("resnet18"), images(1, 3, 32, 32)) == {}


# ------------------------------------------------------------------------------------------------- no trace


def state(model: nn.Module) -> dict:
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in model.modules()],
        "backward hooks": [[*m._backward_hooks.values(), *m._backward_pre_hooks.values()] for m in model.modules()],
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
    assert torch.is_grad_enabled() and not x.requires_grad and x.grad is None
    with pytest.raises(RuntimeError, match="channels"):
        FUNCTIONS[name](model, images(2, 4, 32, 32))
    assert state(model) == before and torch.is_grad_enabled()


@pytest.mark.parametrize("arguments", [("layer9",), ("fc",), ("layer3", 7), ("layer3", [0])])
def test_leaves_no_trace_of_a_wrong_call(arguments):
    model, x = used_model(), images(2, 3, 32, 32)
    before = state(model)
    with pytest.raises(ValueError):
        grad_cam(model, x, *arguments)
    assert state(model) == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_maps_in_any_surroundings(name):
    """Training mode, frozen parameters, no_grad, inference mode, autocast: float32 in eval mode all the same."""

    def values(model, x):
        result = FUNCTIONS[name](model, x)
        tensors = list(result.values()) if isinstance(result, dict) else [result]
        assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
        return torch.cat([tensor.flatten() for tensor in tensors])

    model, x = classifier("arl18"), images(2, 3, 32, 32)
    expected = values(model, x)
    frozen = copy.deepcopy(model).requires_grad_(False)
    assert torch.equal(values(frozen, x), expected)
    assert torch.equal(values(copy.deepcopy(model).train(), x), expected)
    with torch.no_grad():
        assert torch.equal(values(model, x), expected)
    with torch.inference_mode():
        assert torch.equal(values(model, x.clone()), expected)  # the images are inference tensors, too
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(values(model, x), expected)
    double = values(model, x.double())
    assert torch.equal(double, expected)


# ------------------------------------------------------------------------------------------------- a known answer


def squares(count: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a square, red (class 0) or green (class 1), at a random place; images, labels, masks bool."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((count, 3, side, side), generator=generator) * 0.3
    labels, masks = torch.arange(count) % 2, torch.zeros(count, side, side, dtype=torch.bool)
    corners = torch.randint(0, side - 10, (count, 2), generator=generator).tolist()
    for i, (top, left) in enumerate(corners):
        masks[i, top : top + 10, left : left + 10] = True
        x[i, int(labels[i]), masks[i]] += 2
    return x, labels, masks


def test_maps_find_what_the_class_depends_on():
    torch.manual_seed(0)
    model, (x, labels, masks) = Tiny(8, 2), squares(64)
    parameters = list(model.parameters())
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.5 * gradient
    assert (model(x).argmax(1) == labels).all()
    chance = masks.float().mean().item()
    for maps in (class_activation_maps(model, x, labels), grad_cam(model, x, "conv2", labels)):
        heats = to_image_size(maps, (32, 32), scaled=False)
        shares = [mass_inside(heat, mask) for heat, mask in zip(heats, masks.numpy(), strict=True)]
        assert np.mean(shares) > 5 * chance and np.min(shares) > 2 * chance
    # The other class sees nothing there.
    other = to_image_size(class_activation_maps(model, x, 1 - labels), (32, 32), scaled=False)
    assert np.mean([heat[mask].mean() for heat, mask in zip(other, masks.numpy(), strict=True)]) < 0


# ------------------------------------------------------------------------------------------------- drawing, mass


def test_to_image_size():
    maps = torch.zeros(3, 3, 4)
    maps[0, 0, 3], maps[1], maps[2, 2, 0] = 5, 7, -2
    drawn = to_image_size(maps.requires_grad_(), (80, 30))
    assert drawn.shape == (3, 30, 80) and drawn.dtype == np.float32
    assert drawn[0].min() == 0 and drawn[0].max() == 1 and (drawn[0, :5, -10:] == 1).all()
    assert (drawn[1] == 0).all()  # flat
    assert drawn[2].min() == 0 and drawn[2].max() == 1 and (drawn[2, -5:, :10] == 0).all()
    kept = to_image_size(maps, (80, 30), scaled=False)
    assert kept[0].max() == 5 and np.allclose(kept[1], 7) and kept[2].min() == -2
    assert np.allclose(kept[0, 0, 60:80], np.clip((np.arange(60, 80) + 0.5 - 50) / 20, 0, 1) * 5)
    assert np.array_equal(to_image_size(maps, (4, 3), scaled=False), maps.detach().numpy())


@pytest.mark.filterwarnings("error")
def test_mass_inside():
    heat, mask = np.array([[1.0, 3.0], [-8.0, 4.0]]), np.array([[False, True], [True, False]])
    assert mass_inside(heat, mask) == pytest.approx(3 / 8)  # -8 counts as 0
    assert mass_inside(heat, mask.astype(np.uint8)) == pytest.approx(3 / 8)
    assert mass_inside(np.full((7, 5), 0.1, np.float32), np.arange(35).reshape(7, 5) < 7) == pytest.approx(0.2)
    assert np.isnan(mass_inside(np.array([[-1.0, 0.0]]), np.array([[True, False]])))
    with pytest.raises(ValueError, match=r"heat is \(7, 7\), mask is \(224, 224\)"):
        mass_inside(np.ones((7, 7)), np.ones((224, 224), bool))


def test_after_training_the_maps_lie_on_the_lesion(tmp_path, monkeypatch):
    """Drawn lesions, whose place is known, seen as `plot_saliency` sees them. More than chance: a share of the
    map's mass in the mask above the mask's share of the image; a network that has learnt nothing stays near it. Few
    maps may be without any mass (nothing speaks for the class). The bounds leave room for machines that round
    differently: one and two threads gave 1.5 and 1.2 for CAM, 2.0 and 1.9, 1.4 and 1.6."""
    data = make_synthetic(tmp_path / "sample", {"train": 800, "validation": 120, "test": 0}, (192, 144))
    for name in ("evaluate", "leave_arl18"):
        monkeypatch.setattr(cls_main, name, lambda *_: None)
    command = ["-n", "arl18", "-p", "0", "--size", "64", "64", "--epochs", "8", "--lr", "1e-3", "--data", str(data)]
    cls_main.main([*command, "--output", str(tmp_path), "--cache", str(tmp_path / "cache")])
    samples = [sample for sample in read_split(data, "validation") if sample.label < 2]
    masks = np.stack([read_mask(sample.mask, (128, 128)) for sample in samples])
    frames = np.stack([read_image(sample.image, (128, 128)) for sample in samples])
    images, labels = to_input(torch.from_numpy(frames), torch.device("cpu")), [sample.label for sample in samples]

    def gain(maps) -> float:
        heats = to_image_size(maps, (128, 128), scaled=False)
        gains = [mass_inside(heat, mask) / mask.mean() for heat, mask in zip(heats, masks, strict=True)]
        return np.nanmean(gains) if np.isfinite(gains).mean() > 0.8 else np.nan

    def gains(model) -> dict[str, float]:
        return {
            "cam": gain(class_activation_maps(model, images, labels)),
            "grad_cam": gain(grad_cam(model, images, "layer3", labels)),
            "attention": gain(attention_maps(model, images)["layer2.0"]),
        }

    torch.manual_seed(0)
    model = nets.create_model("arl18")
    before = gains(model)
    model.load_state_dict(torch.load(tmp_path / "arl18-scratch" / "run0" / "best.pth", weights_only=True)["model"])
    after = gains(model)
    assert after["cam"] > 1 and after["grad_cam"] > 1.2 and after["attention"] > 1.05, after
    assert after["cam"] > before["cam"] and after["attention"] > before["attention"], before
