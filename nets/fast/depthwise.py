"""Depthwise convolutions whose gradients are fast in bfloat16 on a CPU too: those with stride 2 or large kernels.

PyTorch's own take five to fifty times as long there: more than a third of a step of MobileNetV2, two of EfficientNet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**21  # values that are worked on at a time
SMALL = 3  # the side of the largest kernel whose gradient PyTorch is fast at
NONE, ONE = (0, 0), (1, 1)


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """The convolution: x [B, C, H, W], weight [C, 1, k, l], stride 1 or 2, k and l at least 3 → [B, C, H', W'].

    Its gradients are those of a convolution with stride 1, for an output that is 0 in between, and the weight's those
    of kernels of 3×3, next to each other in the large one.
    """
    return _Depthwise.apply(x, weight, stride, padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A few images at a time, so that the gradient with zeros in between stays in the cache."""
        x, weight = ctx.saved_tensors
        images = max(1, CHUNK // x[0].numel())
        sides = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], ctx.padding, weight.shape[2:], strict=True)]
        of_x = torch.empty_like(x)
        of_weight = torch.zeros_like(weight, dtype=torch.promote_types(x.dtype, torch.float32))
        for g, some, out in zip(gradient.split(images), x.split(images), of_x.split(images), strict=True):
            if ctx.stride == 2:
                spread = torch.empty((*g.shape[:2], *sides), dtype=g.dtype, memory_format=torch.channels_last).zero_()
                spread[..., ::2, ::2] = g
                g = spread
            of_some, more = _gradients(g, some, weight, ctx.padding)
            out.copy_(of_some)
            of_weight += more
        return of_x, of_weight.to(weight.dtype), None, None


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """By x and by the weight, of a convolution with stride 1."""

    def backward(x: Tensor, weight: Tensor, padding: tuple[int, int], wanted: tuple[bool, bool, bool]) -> list[Tensor]:
        rest = (None, ONE, padding, ONE, False, NONE, len(weight), wanted)
        return torch.ops.aten.convolution_backward(gradient, x, weight, *rest)

    if max(weight.shape[2:]) <= SMALL:
        return tuple(backward(x, weight, padding, (True, True, False))[:2])
    of_x = backward(x, weight, padding, (True, False, False))[0]
    of_weight = torch.empty_like(weight)
    padded, (height, width) = F.pad(x, (padding[1],) * 2 + (padding[0],) * 2), gradient.shape[2:]
    downs, rights = ([*range(0, side - SMALL, SMALL), side - SMALL] for side in weight.shape[2:])
    for down in downs:
        for right in rights:
            window = padded[:, :, down : down + height + SMALL - 1, right : right + width + SMALL - 1]
            part = (..., slice(down, down + SMALL), slice(right, right + SMALL))
            of_weight[part] = backward(window, weight[part], NONE, (False, True, False))[1]
    return of_x, of_weight


class FastDepthwise(nn.Conv2d):
    """In place of `conv`, a depthwise convolution that `is_slow`, whose weights it takes over.

    same: padded as TensorFlow does, ⌈H/stride⌉ rows come out; conv's own padding counts otherwise.
    """

    def __init__(self, conv: nn.Conv2d, same: bool = False) -> None:
        options = {"groups": conv.groups, "bias": False, "device": "meta"}  # draws no random numbers
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, **options)
        self.weight, self.bias, self.same = conv.weight, conv.bias, same

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`: [B, C, H, W] → [B, C, H', W']."""
        if self.same:
            from timm.layers import pad_same  # imports slowly, and only timm's networks have such convolutions

            x = pad_same(x, self.kernel_size, self.stride)
        autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return super().forward(x)
        out = depthwise(x.to(dtype), self.weight.to(dtype), self.stride[0], self.padding)
        return out if self.bias is None else out + self.bias.to(dtype).view(-1, 1, 1)


def is_slow(module: nn.Module) -> bool:
    """Whether it is a convolution with gradients that are slow in PyTorch and fast here."""
    if not isinstance(module, nn.Conv2d) or not 1 < module.groups == module.in_channels == module.out_channels:
        return False
    slow = module.stride == (2, 2) or (module.stride == ONE and max(module.kernel_size) > SMALL)
    return slow and min(module.kernel_size) >= SMALL and module.dilation == ONE and not isinstance(module.padding, str)


def with_fast_depthwise(model: nn.Module, same: type[nn.Conv2d] | None = None) -> nn.Module:
    """The model, each convolution that `is_slow` replaced by a `FastDepthwise` of the same name and weights.

    same: the class of those that are padded as TensorFlow does. Other subclasses, which compute otherwise, stay.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.Conv2d, same) and is_slow(child):
                setattr(module, name, FastDepthwise(child, type(child) is same))
    return model
