"""Depthwise convolutions with stride 2 whose gradients are fast in bfloat16 on a CPU too.

PyTorch's own gradients take five to thirty times as long there: more than a third of a step of MobileNetV2.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**21  # values that are worked on at a time


def strided_depthwise(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The convolution: x [B, C, H, W], weight [C, 1, k, k] with k odd and padding k // 2 → [B, C, ⌈H/2⌉, ⌈W/2⌉].

    Its gradients are those of a convolution with stride 1, for an output that is 0 in between.
    """
    return _StridedDepthwise.apply(x, weight, padding)


class _StridedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return nn.functional.conv2d(x, weight, None, 2, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A few images at a time, so that the gradient with zeros in between stays in the cache."""
        x, weight = ctx.saved_tensors
        images, ones = max(1, CHUNK // x[0].numel()), (1, 1)
        of_x = torch.empty_like(x)
        of_weight = torch.zeros_like(weight, dtype=torch.promote_types(x.dtype, torch.float32))
        spread = torch.zeros_like(x[:images])
        for g, some, out in zip(gradient.split(images), x.split(images), of_x.split(images), strict=True):
            spread = spread[: len(some)]
            spread[..., ::2, ::2] = g
            of_some, more, _ = torch.ops.aten.convolution_backward(
                spread, some, weight, None, ones, ctx.padding, ones, False, (0, 0), len(weight), (True, True, False)
            )
            out.copy_(of_some)
            of_weight += more
        return of_x, of_weight.to(weight.dtype), None


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with stride 2 in place of `conv`, whose weights it takes over.

    conv: without bias, its padding half of its odd kernel, so that stride 1 keeps the image's size.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        options = {"groups": conv.groups, "bias": False, "device": "meta"}  # draws no random numbers
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, **options)
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`: [B, C, H, W] → [B, C, ⌈H/2⌉, ⌈W/2⌉]."""
        autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return super().forward(x)
        return strided_depthwise(x.to(dtype), self.weight.to(dtype), self.padding)


def with_fast_depthwise(model: nn.Module) -> nn.Module:
    """The model, its strided depthwise convolutions replaced by `StridedDepthwise` of the same names and weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and 1 < child.groups == child.out_channels:
                setattr(module, name, StridedDepthwise(child))
    return model
