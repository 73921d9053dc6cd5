"""The networks: every registered one, and the invariants that make ARL-CNN and ResNet what they claim to be."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import interpolate

import nets
from nets.arl import ARLAttention
from nets.fast import kernel
from nets.resnet import Block


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


@pytest.mark.parametrize("name", nets.NETS)
def test_forward_backward(name):
    model = nets.create_model(name, num_classes=4)
    logits = model(images(2, 3, 64, 96))
    assert logits.shape == ((2, 4, 64, 96) if name in nets.SEGMENTERS else (2, 4))
    logits.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} takes no part in the output"
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (63, 32), (101, 75)])
@pytest.mark.parametrize("name", nets.NETS)
def test_any_image_size(name, size):
    model = nets.create_model(name).eval()
    with torch.no_grad():
        logits = model(images(1, 3, *size))
    assert logits.shape == ((1, 2, *size) if name in nets.SEGMENTERS else (1, 3))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", nets.SEGMENTERS)
def test_trains_at_the_smallest_size(name):
    nets.create_model(name).train()(images(2, 3, 32, 32)).mean().backward()


@pytest.mark.parametrize("name", nets.NETS)
def test_save_and_load(name, tmp_path):
    model = with_random_statistics(nets.create_model(name)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = nets.create_model(name).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("layout", ["18", "34", "50"])
def test_resnet_equals_torchvision_bit_for_bit(layout):
    reference = with_random_statistics(getattr(torchvision.models, f"resnet{layout}")(weights=None))
    model = nets.create_model(f"resnet{layout}", num_classes=1000)
    model.load_state_dict(reference.state_dict())
    x = images(2, 3, 96, 80)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), reference.train(mode)(x))


@pytest.mark.parametrize("layout", ["18", "50"])
def test_arl_lacks_exactly_the_alphas_and_the_classifier(layout):
    reference = getattr(torchvision.models, f"resnet{layout}")(weights=None).state_dict()
    del reference["fc.weight"], reference["fc.bias"]
    missing, unexpected = nets.create_model(f"arl{layout}").load_state_dict(reference, strict=False)
    blocks = sum(isinstance(module, Block) for module in nets.create_model(f"arl{layout}").modules())
    assert unexpected == []
    assert sorted(name for name in missing if not name.endswith("attention.alpha")) == [
        "fc.bias",
        "fc.weight",
    ]
    assert len(missing) == blocks + 2


@pytest.mark.parametrize("layout", ["14", "18", "50"])
@pytest.mark.parametrize("attention", ["spatial", "channel"])
def test_alpha_zero_is_the_plain_resnet_bit_for_bit(layout, attention):
    """Both ways to α = 0: the option, which skips the term, and a learnable α that happens to be 0."""
    plain = with_random_statistics(nets.create_model(f"resnet{layout}"))
    switched_off = nets.create_model(f"arl{layout}", attention=attention, alpha=0)
    computed = nets.create_model(f"arl{layout}", attention=attention)
    x = images(2, 3, 64, 64)
    for model in (switched_off, computed):
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        assert unexpected == [] and all(name.endswith("alpha") for name in missing)
        for name, tensor in model.state_dict().items():
            if name.endswith("alpha"):
                tensor.zero_()
        for mode in (True, False):
            assert torch.equal(model.train(mode)(x), plain.train(mode)(x))


@pytest.mark.parametrize("layout", ["18", "50"])
def test_one_seed_gives_torchvision_resnet_and_arl_the_same_weights(layout):
    states = []
    for create in (
        lambda: getattr(torchvision.models, f"resnet{layout}")(weights=None, num_classes=3),
        lambda: nets.create_model(f"resnet{layout}"),
        lambda: nets.create_model(f"arl{layout}"),
    ):
        torch.manual_seed(0)
        states.append(create().state_dict())
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())


def test_attention_none_is_a_resnet():
    assert (
        nets.create_model("arl18", attention="none").state_dict().keys()
        == nets.create_model("resnet18").state_dict().keys()
    )


@pytest.mark.parametrize("over", ["spatial", "channel"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("relu", [False, True])
def test_attention_has_the_gradients_of_its_formula(over, layout, relu, monkeypatch):
    """Also where the images are worked on in several chunks, the last of them smaller."""
    monkeypatch.setattr("nets.fast.attended_sum.CHUNK", 2 * 4 * 3 * 5)
    generator = torch.Generator().manual_seed(0)
    residual, shortcut = (
        torch.randn(5, 4, 3, 5, dtype=torch.float64, generator=generator).to(memory_format=layout).requires_grad_()
        for _ in range(2)
    )
    attention = ARLAttention(over).double()
    nn.init.constant_(attention.alpha, 0.7)
    assert torch.autograd.gradcheck(lambda f, s, _: attention(f, s, relu), (residual, shortcut, attention.alpha))
    expected = residual + shortcut + 0.7 * attention.weights(residual) * shortcut
    expected = expected.relu() if relu else expected
    assert torch.allclose(attention(residual, shortcut, relu), expected, rtol=1e-12)
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.allclose(attention(residual, shortcut, relu), expected, rtol=1e-12)
    fixed = ARLAttention(over, "fixed").double()
    (fixed(residual, shortcut, relu).sum()).backward()
    assert residual.grad.isfinite().all() and shortcut.grad.isfinite().all()


def attended(attention: ARLAttention, relu: bool, *values: torch.Tensor) -> list[torch.Tensor]:
    """The sum of F and s, and from the gradient g of it those of F, s and α; (F, s, g) are the values."""
    f, s, g = values
    f, s = f.clone().requires_grad_(), s.clone().requires_grad_()
    attention.alpha.grad = None
    out = attention(f, s, relu=relu)
    out.backward(g)
    return [out.detach(), f.grad, s.grad, attention.alpha.grad]


@pytest.mark.skipif(kernel.load() is None, reason="arl.c cannot be compiled here")
@pytest.mark.parametrize("shape", [(3, 64, 9, 7), (1, 192, 1, 1), (5, 128, 28, 28)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("relu", [False, True])
def test_the_compiled_attention_is_that_of_its_formula(shape, layout, relu, monkeypatch):
    """Outputs and gradients: float32 arithmetic, rounded once; without it, PyTorch's operations give the same."""
    generator = torch.Generator().manual_seed(2)
    values = [3 * torch.randn(shape, generator=generator) for _ in range(3)]
    f, s, g = (value.bfloat16().to(memory_format=layout) for value in values)
    f[0, 0, 0, 0] = 80  # one position gets all the attention
    attention = ARLAttention()
    nn.init.constant_(attention.alpha, 0.7)
    exact = attended(attention, relu, f.double(), s.double(), g.double())
    total = f.double() + s.double() + 0.7 * attention.weights(f.double()) * s.double()
    assert torch.allclose(exact[0], total.relu() if relu else total, rtol=1e-6)
    fused = attended(attention, relu, f, s, g)
    monkeypatch.setattr(kernel, "load", lambda: None)
    plain = attended(attention, relu, f, s, g)
    assert fused[0].is_contiguous(memory_format=torch.channels_last)
    # A sum that is rounded to 0, or is exactly 0 in one type only, has another gradient behind its ReLU.
    decided = total.abs() > 1e-6
    assert decided.double().mean() > 0.98
    for one, other, expected in zip(fused[:3], plain[:3], exact[:3], strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.double()[decided], expected[decided], rtol=2**-8, atol=1e-5)
        assert torch.allclose(other.double()[decided], expected[decided], rtol=2**-6, atol=0.02)
    assert torch.allclose(fused[3].double(), exact[3].double(), rtol=1e-3, atol=1e-2)
    assert not torch.equal(fused[1], plain[1]) or shape[2:] == (1, 1)  # it was another computation


@pytest.mark.skipif(kernel.load() is None, reason="arl.c cannot be compiled here")
@pytest.mark.parametrize("relu", [False, True])
def test_the_compiled_attention_hides_no_value_that_is_not_finite(relu, monkeypatch):
    """-∞ gets no attention and leaves the others alone; ∞ and NaN spread over the channel, and pass the ReLU."""
    values = [torch.randn(2, 64, 6, 5, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(3)]
    f, s, g = (value.to(memory_format=torch.channels_last) for value in values)
    for channel, value in enumerate([float("-inf"), float("inf"), float("nan")]):
        f[0, channel, 2, 3] = value
    s[1, 4, 0, 0] = g[1, 5, 1, 1] = float("nan")
    f[1, 6, 0, 0] = float("nan")  # the first that is looked at
    attention = ARLAttention()
    nn.init.constant_(attention.alpha, 0.7)
    fused = attended(attention, relu, f, s, g)
    monkeypatch.setattr(kernel, "load", lambda: None)
    plain = attended(attention, relu, f, s, g)
    for one, other in zip(fused, plain, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=2**-6, atol=0.02, equal_nan=True)
    assert float(fused[0][0, 0, 2, 3]) == (0 if relu else float("-inf"))
    assert fused[0].isnan().sum() == 3 * 30 + 1


def test_without_a_compiler_attention_is_computed_by_pytorch(tmp_path):
    """And with one that fails; one line says so."""
    (tmp_path / "cc").write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    script = "import logging; logging.basicConfig(level=20); from nets.fast import kernel; print(kernel.load())"
    for variables, text in (
        ({"PATH": str(tmp_path / "nowhere")}, "no C compiler (cc): ARL blocks are computed by PyTorch"),
        ({"PATH": str(tmp_path)}, "no compiled arl.c (no such processor)"),
        ({"ARL_KERNEL": "0"}, ""),
    ):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | variables
        command = [sys.executable, "-c", script]
        root = Path(nets.__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "None\n" and text in done.stderr and (text or not done.stderr)


@pytest.mark.skipif(kernel.load() is None, reason="arl.c cannot be compiled here")
@pytest.mark.parametrize("damage", ["zeros", "cut", "empty", "one byte"])
@pytest.mark.fault("the compiled ARL function is damaged in the cache", "it is compiled again")
def test_a_damaged_library_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = kernel._compiled("cc")
    content, made = path.read_bytes(), path.stat().st_ino
    assert kernel._compiled("cc") == path and path.stat().st_ino == made
    place = len(content) // 2
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes({"zeros": bytes(len(content)), "cut": content[:-9], "empty": b"", "one byte": changed}[damage])
    assert kernel._compiled("cc") == path and path.stat().st_ino != made
    ctypes.CDLL(str(path))
    assert [left.name for left in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(kernel.load() is None, reason="arl.c cannot be compiled here")
@pytest.mark.fault(
    "others may write where the compiled ARL function lies", "it is not run; PyTorch computes it, slower"
)
def test_a_library_that_others_may_change_is_not_loaded(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "arl-kernel").mkdir()
    (tmp_path / "arl-kernel").chmod(0o777)
    with caplog.at_level("INFO", "isic2017"):
        assert kernel.load.__wrapped__() is None
    assert "arl-kernel is another user's, or others may write in it: choose another by XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("over", ["spatial", "channel"])
@pytest.mark.parametrize("relu", [False, True])
def test_attention_in_bfloat16_follows_float32(over, relu):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(3, 16, 8, 8, generator=generator).to(memory_format=torch.channels_last) for _ in range(3)]
    residual, shortcut, gradient = (value.bfloat16() for value in values)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        attention = ARLAttention(over)
        nn.init.constant_(attention.alpha, 0.7)
        results.append(attended(attention, relu, *(value.to(dtype) for value in (residual, shortcut, gradient))))
        *tensors, of_alpha = results[-1]
        assert {tensor.dtype for tensor in tensors} == {dtype} and of_alpha.dtype == torch.float32
    for wide, narrow in zip(*results, strict=True):
        assert torch.allclose(narrow.float(), wide, rtol=2**-7, atol=2**-8)


def test_attention_by_hand():
    """F(x) + s + α · softmax over positions (or channels) of F(x), times s, as on a pocket calculator."""
    residual = torch.log(torch.tensor([[[[1.0, 3.0]], [[1.0, 1.0]]]]))  # [1, 2, 1, 2]
    shortcut = torch.tensor([[[[4.0, 8.0]], [[2.0, 6.0]]]])
    for over, weights in (("spatial", [[0.25, 0.75], [0.5, 0.5]]), ("channel", [[0.5, 0.75], [0.5, 0.25]])):
        attention = ARLAttention(over)
        weights = torch.tensor(weights).view(1, 2, 1, 2)
        assert float(attention.alpha.detach()) == pytest.approx(0.001)
        assert torch.allclose(attention.weights(residual), weights, rtol=1e-6)
        nn.init.constant_(attention.alpha, 0.5)
        expected = residual + shortcut + 0.5 * weights * shortcut
        assert torch.allclose(attention(residual, shortcut), expected, rtol=1e-6)


@pytest.mark.parametrize("over", ["spatial", "channel"])
def test_bfloat16_does_not_lose_terms_below_its_precision(over):
    """Added to a sum that is rounded already, terms below 1/512 of it are lost: 1 % of their mean is left here.

    Rounded once, ties (frequent where F and s are bfloat16 themselves) all go the term's way: up to twice the mean.
    """
    residual, shortcut = torch.randn(2, 32, 64, 64).bfloat16(), torch.rand(2, 32, 64, 64).add(1).bfloat16()
    attention = ARLAttention(over)
    nn.init.constant_(attention.alpha, 2.0 if over == "spatial" else 0.02)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        change = attention(residual, shortcut).double() - (residual + shortcut).double()
        term = attention.alpha * attention.weights(residual).double() * shortcut
    assert (term < 2**-9).double().mean() > 0.5
    assert 0.5 < change.mean() / term.mean() < 2.5


def test_block_formula():
    """y = ReLU(F(x) + s + α · R(F(x)) ⊙ s), F taken after its last batch norm."""
    block = with_random_statistics(Block(8, 4, stride=2, bottleneck=True, attention=ARLAttention())).eval()
    nn.init.constant_(block.attention.alpha, 0.7)
    x = images(2, 8, 10, 14)
    inner = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    residual = block.bn3(block.conv3(inner))
    shortcut = block.downsample(x)
    attention = residual.flatten(2).softmax(-1).view_as(residual)
    assert torch.allclose(block(x), torch.relu(residual + shortcut + 0.7 * attention * shortcut), atol=1e-6)


@pytest.mark.parametrize("alpha,trained", [("learn", True), ("fixed", False), (0, False)])
def test_alpha_learns_only_when_asked(alpha, trained):
    model = nets.create_model("arl14", alpha=alpha)
    alphas = [name for name, _ in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == (4 if trained else 0)
    stored = [tensor for name, tensor in model.state_dict().items() if name.endswith("alpha")]
    assert [round(float(tensor), 6) for tensor in stored] == [0.0 if alpha == 0 else 0.001] * 4


def test_layouts():
    """Bottlenecks [1,1,1,1], basic [2,2,2,2], bottlenecks [3,4,6,3]; a bottleneck puts out 4 times its width."""
    for name, blocks, width in [("arl14", 4, 2048), ("arl18", 8, 512), ("arl50", 16, 2048)]:
        model = nets.create_model(name)
        assert sum(isinstance(module, Block) for module in model.modules()) == blocks
        assert model.fc.in_features == width and model.fc.out_features == 3


@pytest.mark.parametrize(
    "name,channels,strides",
    [
        ("unet", (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16)),
        ("res_unet", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
        ("arl_unet", (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
        ("dense_unet", (64, 256, 512, 1024, 1024), (2, 4, 8, 16, 32)),
        ("mobilenet_unet", (16, 24, 32, 96, 1280), (2, 4, 8, 16, 32)),
    ],
)
def test_encoder_contract(name, channels, strides):
    encoder = nets.create_model(name).encoder.eval()
    assert encoder.channels == channels
    shapes = [tuple(level.shape) for level in encoder.features(images(1, 3, 64, 96))]
    assert shapes == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize("name", nets.SEGMENTERS)
def test_decoder_channels(name):
    channels = [256, 128, 64, 32] if name == "mobilenet_unet" else [512, 256, 128, 64]
    assert [block[0].out_channels for block in nets.create_model(name).decoder] == channels
    model = nets.create_model(name, decoder_channels=(64, 32, 16, 8))
    assert model(images(2, 3, 65, 64)).shape == (2, 2, 65, 64)
    with pytest.raises(ValueError, match="expected 4 decoder channels"):
        nets.create_model(name, decoder_channels=(64, 32, 16))


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
    assert torch.equal(out, interpolate(logits, (64, 96), mode="bilinear", align_corners=False))
    assert torch.equal(joined[:, :512], bottom.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("over", ["spatial", "channel"])
def test_attention_takes_tensors_however_they_lie_in_memory(over):
    f, s = (images(2, 8, 4, 6, seed=seed) for seed in (0, 1))
    attention = ARLAttention(over)
    nn.init.constant_(attention.alpha, 0.7)
    expected = attention(f, s)
    for other in (f.mT.contiguous().mT, f.to(memory_format=torch.channels_last), f.expand(2, 8, 4, 6)):
        assert torch.allclose(attention(other, s), expected, atol=1e-6)
        assert torch.allclose(attention(f, s.mT.contiguous().mT), expected, atol=1e-6)


def test_every_output_pixel_sees_the_image():
    """No border is cut: changing one corner pixel changes the logits there."""
    model = with_random_statistics(nets.create_model("res_unet")).eval()
    x = images(1, 3, 45, 61)
    with torch.no_grad():
        before = model(x)
        for row, column in [(0, 0), (0, 60), (44, 0), (44, 60)]:
            changed = x.clone()
            changed[..., row, column] += 3
            assert not torch.equal(model(changed)[..., row, column], before[..., row, column])


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("resnet19", {}), "no network named 'resnet19'.*arl50"),
        (("arl18", {"attention": "temporal"}), "attention must be one of spatial, channel, none"),
        (("arl18", {"alpha": 2}), "alpha must be one of learn, fixed, 0"),
    ],
)
def test_errors_name_the_choice(arguments, message):
    name, options = arguments
    with pytest.raises(ValueError, match=message):
        nets.create_model(name, **options)
