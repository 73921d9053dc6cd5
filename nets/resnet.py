"""ResNet 14/18/34/50: classifier and encoder in one class, with torchvision's parameter names.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv:1512.03385). As in torchvision,
a bottleneck's stride sits in its 3×3 convolution ("ResNet v1.5").
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

CLASSES = 3  # melanoma, seborrheic keratosis, nevus

# name: (blocks per stage, bottleneck blocks)
LAYOUTS: dict[str, tuple[tuple[int, ...], bool]] = {
    "14": ((1, 1, 1, 1), True),
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
}


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Residual block: `y = ReLU(F(x) + s)`, or `y = attention(F(x), s, relu=True)` with an attention module.

    F is two 3×3 convolutions, or 1×1 → 3×3 → 1×1 with four times as many output channels (`bottleneck`), each
    followed by batch norm; s is x, or its 1×1 projection where the shape changes.

    Args:
        in_channels: channels of x.
        channels: channels inside the block; it puts out `channels`, or 4 · `channels` with `bottleneck`.
        stride: of the block's spatial reduction.
        bottleneck: three convolutions in place of two.
        attention: called with F(x) and s, both [B, C, H, W], in place of adding them and of the ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        bottleneck: bool = False,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.out_channels = channels * (4 if bottleneck else 1)
        # Built first and named last, as in torchvision, so that one seed gives both the same weights.
        downsample = None
        if stride != 1 or in_channels != self.out_channels:
            downsample = nn.Sequential(
                _conv(in_channels, self.out_channels, 1, stride), nn.BatchNorm2d(self.out_channels)
            )
        self.conv1 = _conv(in_channels, channels, 1) if bottleneck else _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(channels)
        if bottleneck:
            self.conv3 = _conv(channels, self.out_channels, 1)
            self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        if self.bottleneck:
            residual = self.bn3(self.conv3(self.relu(residual)))
        if self.attention is None:
            return self.relu(residual + shortcut)
        return self.attention(residual, shortcut, relu=True)


class ResNet(nn.Module):
    """Residual network over RGB images; its state dict has torchvision's keys, plus those of the attention modules.

    Args:
        blocks: number of blocks in each of the four stages.
        bottleneck: bottleneck blocks in place of basic ones.
        num_classes: outputs of the linear layer; None builds an encoder without one.
        attention: makes the attention module of each block, e.g. `ARLAttention`; None for a plain ResNet.

    Attributes:
        channels: channels of each level that `features` returns.
        last_layers: the last ones at 1/16 and 1/32 of the image's size, for Grad-CAM.
    """

    last_layers = ("layer3", "layer4")

    def __init__(
        self,
        blocks: tuple[int, ...],
        bottleneck: bool,
        num_classes: int | None = CLASSES,
        attention: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = [64]
        for level, count in enumerate(blocks, start=1):
            stage = []
            for index in range(count):
                stride = 2 if level > 1 and index == 0 else 1
                in_channels = stage[-1].out_channels if stage else channels[-1]
                module = attention() if attention else None
                stage.append(Block(in_channels, 32 * 2**level, stride, bottleneck, module))
            self.add_module(f"layer{level}", nn.Sequential(*stage))
            channels.append(stage[-1].out_channels)
        self.channels = tuple(channels)
        self.fc = None if num_classes is None else nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse.

        Args:
            x: normalised images, [B, 3, H, W].

        Returns:
            Five, [B, channels[i], ~H/2^(i+1), ~W/2^(i+1)]: the stem's, then each stage's.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        levels = [x]
        x = self.maxpool(x)
        for level in range(1, len(self.channels)):
            x = self.get_submodule(f"layer{level}")(x)
            levels.append(x)
        return levels

    def classify(self, x: Tensor) -> Tensor:
        """The last map [B, C, H/32, W/32] → logits [B, num_classes]."""
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] → logits [B, num_classes]."""
        return self.classify(self.features(x)[-1])


def resnet(layout: str, num_classes: int | None = CLASSES, **options) -> ResNet:
    """ResNet by the name of its layout ("14", "18", "34", "50"); options as for `ResNet`."""
    blocks, bottleneck = LAYOUTS[layout]
    return ResNet(blocks, bottleneck, num_classes, **options)


resnet14, resnet18, resnet34, resnet50 = (partial(resnet, layout) for layout in LAYOUTS)
