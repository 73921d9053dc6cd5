"""MobileNetV2, the same with attention residual learning, and the U-Net decoder over it: networks for small machines.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381). The layers are torchvision's and segmentation_models_pytorch's, and their names torchvision's.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2 as Backbone

from nets.arl import ARLAttention, attention_factory
from nets.resnet import CLASSES
from nets.unet import CLASSES as MASK_CLASSES
from nets.unet import LibraryEncoder, UNet

LEVEL_ENDS = (2, 4, 7, 14, 19)  # of the backbone's features: the last layers at 1/2, 1/4, … 1/32 of the image's size
SMALL_DECODER = (256, 128, 64, 32)
CHUNK = 2**21  # values that are worked on at a time
DROPOUT = 0.2  # before the linear layer, as in torchvision


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise convolution with stride 2; its gradients are those of stride 1 at every other position.

    In bfloat16 on a CPU PyTorch's own take five to thirty times as long: more than a third of a step of MobileNetV2.
    A few images at a time, so that what is spread out stays in the cache.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return nn.functional.conv2d(x, weight, None, 2, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
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
    """A depthwise convolution with stride 2 whose step is fast in bfloat16 on a CPU too; it takes over the weights.

    conv: without bias, its padding half of its odd kernel, so that stride 1 keeps the image's size.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        options = {"groups": conv.groups, "bias": False, "device": "meta"}  # draws no random numbers
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, **options)
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`: [B, C, H, W] → [B, C, H/2, W/2], rounded up."""
        autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return super().forward(x)
        return _StridedDepthwise.apply(x.to(dtype), self.weight.to(dtype), self.padding)


def with_fast_depthwise(model: nn.Module) -> nn.Module:
    """The model, its strided depthwise convolutions replaced by `StridedDepthwise` of the same names and weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and 1 < child.groups == child.out_channels:
                setattr(module, name, StridedDepthwise(child))
    return model


class ARLInvertedResidual(InvertedResidual):
    """An inverted residual block, `F(x) + x + α · R(F(x)) ⊙ x` where it has a shortcut; no ReLU follows."""

    def __init__(self, *args, factory: Callable[[], ARLAttention], **options) -> None:
        super().__init__(*args, **options)
        self.attention = factory() if self.use_res_connect else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.attention is None else self.attention(self.conv(x), x)


class MobileNetV2(nn.Module):
    """MobileNetV2 with one linear layer to the classes.

    Args:
        num_classes: outputs.
        attention: builds the attention of each block that has a shortcut; None leaves MobileNetV2 as it is.

    Attributes:
        backbone: the convolutions, under torchvision's parameter names (`features.0.0.weight`, …).
        fc: the linear layer.
        last_layers: the last ones at 1/16 and 1/32 of the image's size, for Grad-CAM.
    """

    last_layers = ("backbone.features.13", "backbone.features.18")

    def __init__(self, num_classes: int = CLASSES, attention: Callable[[], ARLAttention] | None = None) -> None:
        super().__init__()
        block = None if attention is None else partial(ARLInvertedResidual, factory=attention)
        self.backbone = with_fast_depthwise(Backbone(block=block))
        self.fc = nn.Linear(self.backbone.last_channel, num_classes)
        self.dropout = nn.Dropout(DROPOUT)
        del self.backbone.classifier

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] → five maps [B, C, ~H/2^(i+1), ~W/2^(i+1)], from fine to coarse."""
        levels, start = [], 0
        for end in LEVEL_ENDS:
            x = self.backbone.features[start:end](x)
            levels.append(x)
            start = end
        return levels

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] → logits [B, num_classes]."""
        x = self.features(x)[-1]  # [B, 1280, H/32, W/32]
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(self.dropout(x))


def mobilenet(num_classes: int = CLASSES) -> MobileNetV2:
    return MobileNetV2(num_classes)


def arl_mobilenet(num_classes: int = CLASSES, attention: str = "spatial", alpha: str | float = "learn") -> MobileNetV2:
    """MobileNetV2 with an `ARLAttention` in each of its ten blocks that have a shortcut (options as for `arl`).

    The attention has no weights but α, so MobileNetV2's own are all kept: at α = 0 it is MobileNetV2.
    """
    return MobileNetV2(num_classes, attention_factory(attention, alpha))


def mobilenet_unet(num_classes: int = MASK_CLASSES, decoder_channels: tuple[int, ...] = SMALL_DECODER) -> UNet:
    """The U-Net decoder, half as wide, over MobileNetV2; the skips come from the last layers at 1/2 to 1/16."""
    return UNet(with_fast_depthwise(LibraryEncoder("mobilenet_v2")), num_classes, decoder_channels)
