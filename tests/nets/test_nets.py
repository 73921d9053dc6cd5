"""The networks: every registered one, and the invariants that make ARL-CNN and ResNet what they claim to be."""

import pytest
import torch
import torchvision
from torch import nn

import nets
from nets.arl import ARLAttention
from nets.resnet import Block

# Of timm's: other mean and deviation, and padding by the size; layers after the pooling; no map at half the size.
NAMES = ("tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto")
OF_TIMM = [f"{family}/{name}" for name in NAMES for family in nets.TIMM]


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_random_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as after training, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("name", [*nets.NETS, *OF_TIMM])
def test_every_network(name):
    """All its parameters learn, from 32×32 pixels on; any size is taken; the state dict is all that it knows."""
    model = nets.create_model(name, num_classes=4)
    model(images(2, 3, 32, 32)).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} takes no part in the output"
        assert parameter.grad.isfinite().all(), parameter_name
    other = nets.create_model(name, num_classes=4).eval()
    other.load_state_dict(with_random_statistics(model).eval().state_dict())
    x = images(1, 3, 33, 47)
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(other(x), logits)
    assert logits.shape == ((1, 4, 33, 47) if nets.is_segmenter(name) else (1, 4)) and logits.isfinite().all()


@pytest.mark.parametrize("layout", ["18", "34", "50"])
def test_resnet_is_torchvisions(layout):
    """One seed gives both the same weights under the same names; their outputs are the same bit for bit."""
    torch.manual_seed(0)
    reference = getattr(torchvision.models, f"resnet{layout}")(weights=None, num_classes=3)
    torch.manual_seed(0)
    model = nets.create_model(f"resnet{layout}")
    state = model.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.state_dict().items())
    model.load_state_dict(with_random_statistics(reference).state_dict())
    x = images(2, 3, 48, 33)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), reference.train(mode)(x))


@pytest.mark.parametrize("layout,blocks", [("18", 8), ("50", 16)])
def test_torchvisions_resnet_lacks_of_arl_exactly_the_alphas_and_the_classifier(layout, blocks):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, f"resnet{layout}")(weights=None, num_classes=3).state_dict()
    torch.manual_seed(0)
    model = nets.create_model(f"arl{layout}")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.items())  # from one seed
    del reference["fc.weight"], reference["fc.bias"]
    missing, unexpected = model.load_state_dict(reference, strict=False)
    alphas = {f"{name}.attention.alpha" for name, module in model.named_modules() if isinstance(module, Block)}
    assert unexpected == [] and len(alphas) == blocks
    assert sorted(missing) == sorted({"fc.bias", "fc.weight"} | alphas)


@pytest.mark.parametrize("layout,attention", [("14", "channel"), ("18", "spatial")])
def test_alpha_zero_is_the_plain_resnet_bit_for_bit(layout, attention):
    """Both ways to α = 0: the option, which skips the term, and a learnable α that happens to be 0."""
    plain = with_random_statistics(nets.create_model(f"resnet{layout}"))
    switched_off = nets.create_model(f"arl{layout}", attention=attention, alpha=0)
    computed = nets.create_model(f"arl{layout}", attention=attention)
    x = images(2, 3, 64, 32)
    for model in (switched_off, computed):
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        assert unexpected == [] and all(name.endswith("alpha") for name in missing)
        for name, tensor in model.state_dict().items():
            if name.endswith("alpha"):
                tensor.zero_()
        for mode in (True, False):
            assert torch.equal(model.train(mode)(x), plain.train(mode)(x))


def test_alpha_starts_at_a_thousandth_and_learns_when_asked():
    for alpha, value, learns in (("learn", 0.001, True), ("fixed", 0.001, False), (0, 0.0, False)):
        model = nets.create_model("arl14", alpha=alpha)
        alphas = [tensor for name, tensor in model.state_dict().items() if name.endswith("attention.alpha")]
        assert [round(float(tensor), 6) for tensor in alphas] == [value] * 4
        assert sum(name.endswith("alpha") for name, _ in model.named_parameters()) == (4 if learns else 0)
    plain = nets.create_model("resnet14").state_dict()
    assert nets.create_model("arl14", attention="none").state_dict().keys() == plain.keys()


def test_block_formula():
    """y = ReLU(F(x) + s + α · R(F(x)) ⊙ s), F taken after its last batch norm."""
    block = with_random_statistics(Block(8, 4, stride=2, bottleneck=True, attention=ARLAttention())).eval()
    nn.init.constant_(block.attention.alpha, 0.7)
    x = images(2, 8, 10, 14)
    inner = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    residual = block.bn3(block.conv3(inner))
    shortcut, attention = block.downsample(x), residual.flatten(2).softmax(-1).view_as(residual)
    assert torch.allclose(block(x), torch.relu(residual + shortcut + 0.7 * attention * shortcut), atol=1e-6)


@pytest.mark.parametrize(
    "name,channels,strides,decoder",
    [
        ("unet", (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16), (512, 256, 128, 64)),
        ("res_unet", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32), (512, 256, 128, 64)),
        ("arl_unet", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32), (512, 256, 128, 64)),
        ("dense_unet", (64, 256, 512, 1024, 1024), (2, 4, 8, 16, 32), (512, 256, 128, 64)),
        ("mobilenet_unet", (16, 24, 32, 96, 1280), (2, 4, 8, 16, 32), (256, 128, 64, 32)),
        ("timm_unet/tf_efficientnet_lite0", (16, 24, 40, 112, 320), (2, 4, 8, 16, 32), (128, 64, 32, 16)),
        ("timm_unet/convnext_atto", (40, 80, 160, 320), (4, 8, 16, 32), (128, 64, 32)),
    ],
)
def test_encoder_and_decoder(name, channels, strides, decoder):
    model = nets.create_model(name)
    assert model.encoder.channels == channels and model.head.out_channels == 2
    with torch.no_grad():
        shapes = [tuple(level.shape) for level in model.encoder.eval().features(images(1, 3, 64, 32))]
    assert shapes == [(1, c, 64 // s, 32 // s) for c, s in zip(channels, strides, strict=True)]
    assert tuple(block[0].out_channels for block in model.decoder) == decoder


def test_logits_are_enlarged_over_the_whole_frame():
    """Pixel centres stay where they are (`align_corners=False`); features go to the skip's size by the nearest."""
    model, inside = nets.create_model("res_unet").eval(), []
    model.head.register_forward_hook(lambda _module, _inputs, logits: inside.append(logits))
    model.decoder[0].register_forward_pre_hook(lambda _module, inputs: inside.append(inputs[0]))
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        out = model(x)
        bottom = model.encoder.features(x)[-1]
    joined, logits = inside
    assert torch.equal(out, nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False))
    assert torch.equal(joined[:, :512], bottom.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("resnet19", {}, "no network named 'resnet19'.*arl50"),
        ("arl18", {"attention": "temporal"}, "attention must be one of spatial, channel, none"),
        ("arl18", {"alpha": 2}, "alpha must be one of learn, fixed, 0"),
        ("res_unet", {"decoder_channels": (64, 32, 16)}, "expected 4 decoder channels"),
        ("resnet18/a", {}, "no network named 'resnet18/a'.*timm/NAME"),
        ("timm/tf_eficientnet_lite0", {}, "has no network named 'tf_eficientnet_lite0'; close to it: tf_effic"),
        ("timm_unet/resnet18.none", {}, "has no network named 'resnet18.none'; close to it: resnet18, "),
        ("timm", {}, "has no network named ''; close to it: resnet"),
        *((f"timm/{name}", {}, f"{name} does not fit: a network is needed that .* as resnet") for name in (
            "vit_tiny_patch16_224", "mambaout_femto", "iformer_m_distilled",  # one size; channels last; two classifiers
        )),
    ],
)  # fmt: skip
def test_errors_name_the_choice(name, options, message):
    with pytest.raises(ValueError, match=message):
        nets.create_model(name, **options)
