"""MobileNetV2, the same with attention residual learning, and the U-Net decoder over it: networks for small machines.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv:1801.04381). The layers are torchvision's and segmentation_models_pytorch's, and their names torchvision's.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv2 import MobileNetV2 as Backbone

from nets.arl import ARLAttention, attention_factory
from nets.fast.depthwise import with_fast_depthwise
from nets.resnet import CLASSES
from nets.unet import CLASSES as MASK_CLASSES
from nets.unet import LibraryEncoder, UNet

LEVEL_ENDS = (2, 4, 7, 14, 19)  # of the backbone's features: the last layers at 1/2, 1/4, … 1/32 of the image's size
SMALL_DECODER = (256, 128, 64, 32)
DROPOUT = 0.2  # before the linear layer, as in torchvision


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

    def classify(self, x: Tensor) -> Tensor:
        """The last map [B, 1280, H/32, W/32] → logits [B, num_classes]."""
        return self.fc(self.dropout(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] → logits [B, num_classes]."""
        return self.classify(self.features(x)[-1])


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
