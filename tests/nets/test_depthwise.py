"""The depthwise convolutions with fast gradients against PyTorch's own."""

import copy
import math

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

import nets
from nets.fast import depthwise
from nets.fast.depthwise import FastDepthwise, is_slow

KINDS = [(3, 2, 1), (5, 1, 2), (5, 2, 2), (5, 2, 0), (7, 1, 3), ((3, 5), 1, (1, 2))]  # kernel, stride, padding


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (5, 12)], ids=str)
def test_the_gradients_are_those_of_pytorch(kind, size, monkeypatch):
    """Images are worked on two at a time, and one is left."""
    monkeypatch.setattr(depthwise, "CHUNK", 4 * math.prod(size))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, *size, dtype=torch.float64, generator=generator).requires_grad_()
    conv = nn.Conv2d(2, 2, *kind, groups=2, bias=False).double()
    expected = conv(x)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    out = depthwise.depthwise(x, conv.weight, conv.stride[0], conv.padding)
    assert torch.equal(out, expected)
    ours, theirs = (torch.autograd.grad(each, (x, conv.weight), gradient) for each in (out, expected))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("precision", ["bfloat16 autocast", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False),
        Conv2dSame(16, 16, 5, 2, groups=16, bias=False),
        nn.Conv2d(16, 16, 7, 1, 3, groups=16),
    ],
    ids=["MobileNet", "EfficientNet", "ConvNeXt"],
)
def test_a_convolution_in_any_precision(conv, precision):
    torch.manual_seed(0)
    theirs, exact = copy.deepcopy(conv), copy.deepcopy(conv)
    ours = FastDepthwise(copy.deepcopy(conv), same=isinstance(conv, Conv2dSame))
    x, results = torch.randn(4, 16, 9, 12), []
    if precision == "bfloat16":
        ours, theirs, x = ours.bfloat16(), theirs.bfloat16(), x.bfloat16()
    for conv, image in ((ours, x.clone()), (theirs, x.clone()), (exact.double(), x.double())):
        image.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision and conv is not exact):
            out = conv(image)
        out.double().square().sum().backward()
        results.append((out.detach(), image.grad, *(parameter.grad for parameter in conv.parameters())))
    for mine, other, right in zip(*results, strict=True):
        error = (mine.double() - right).norm() / right.norm()
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert error < (1e-6 if precision == "float32" else 2**-6)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite1", "convnext_atto"])
def test_timms_networks_have_them_under_the_same_names(name):
    slow = {name for name, module in timm.create_model(name).named_modules() if is_slow(module)}
    modules = nets.create_model(f"timm/{name}").backbone.named_modules()
    assert slow and slow == {name for name, module in modules if isinstance(module, FastDepthwise)}
