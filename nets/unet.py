"""U-Net: one decoder over any encoder that offers `channels` and `features(x)`, and the plain encoder of the paper.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015
(arXiv:1505.04597); here with batch norm, padded convolutions and nearest-neighbour upsampling to the skip's size, so
that any image size works and the output has the input's size.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 2  # background, lesion
DECODER_CHANNELS = (512, 256, 128, 64)


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice 3×3 convolution, batch norm, ReLU: [B, in_channels, H, W] → [B, out_channels, H, W]."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNetEncoder(nn.Module):
    """The contracting path of the plain U-Net: double convolutions, each level at half the size of the one before.

    Attributes:
        channels: channels of each level that `features` returns.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in pairwise((3, *channels)))

    def features(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] → one [B, channels[i], ⌊H/2^i⌋, ⌊W/2^i⌋] per level, from fine to coarse."""
        maps = [self.levels[0](x)]
        for level in self.levels[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        return maps


class UNet(nn.Module):
    """Encoder, decoder with a skip from every encoder level, and a 1×1 convolution to the classes.

    The decoder's blocks go from coarse to fine. Where the encoder has no level left to skip from (its first level
    is already at half the image's size) the last block works without one at the image's own size.

    Args:
        encoder: module with `channels` and `features(x)` (levels from fine to coarse, each half the one before).
        num_classes: classes of the output, background included.
        decoder_channels: channels of each decoder block, from coarse to fine.

    Raises:
        ValueError: the decoder has fewer blocks than the encoder has skips, or more than one over.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int = CLASSES,
        decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        *skips, bottleneck = encoder.channels
        if not 0 <= len(decoder_channels) - len(skips) <= 1:
            raise ValueError(
                f"{len(decoder_channels)} decoder blocks do not fit an encoder of {len(encoder.channels)} levels"
            )
        self.encoder = encoder
        self.decoder = nn.ModuleList()
        channels = bottleneck
        padded = [*reversed(skips), 0][: len(decoder_channels)]
        for skip, out_channels in zip(padded, decoder_channels, strict=True):
            self.decoder.append(double_conv(channels + skip, out_channels))
            channels = out_channels
        self.head = nn.Conv2d(channels, num_classes, 1)
        for module in [*self.decoder.modules(), self.head]:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W], H and W ≥ 32 → logits [B, num_classes, H, W]."""
        size = x.shape[-2:]
        *skips, x = self.encoder.features(x)
        for block in self.decoder:
            skip = skips.pop() if skips else None
            x = F.interpolate(x, size if skip is None else skip.shape[-2:], mode="nearest")
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
        return self.head(x)


def unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """The plain U-Net: encoder 64, 128, … doubling, one level more than the decoder has blocks."""
    encoder = UNetEncoder(tuple(64 * 2**level for level in range(len(decoder_channels) + 1)))
    return UNet(encoder, num_classes, decoder_channels)
