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
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
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


class LibraryEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch with random weights, by its name there, such as "densenet121".

    Attributes:
        channels: channels of each level that `features` returns.
        backbone: the layers, under torchvision's parameter names.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        # Imported here: it takes seconds, and few networks need it.
        from segmentation_models_pytorch.encoders import get_encoder

        self.backbone = get_encoder(name, in_channels=3, depth=5, weights=None)
        self.channels = tuple(self.backbone.out_channels[1:])

    def features(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] → five [B, channels[i], ~H/2^(i+1), ~W/2^(i+1)], from fine to coarse."""
        return self.backbone(x)[1:]


class UNet(nn.Module):
    """Encoder, a decoder with a skip from every encoder level but the last, and a 1×1 convolution to the classes.

    The decoder ends at the size of the encoder's first level. Where that is not the image's (a ResNet's or
    DenseNet's stem halves it) the logits are enlarged bilinearly.

    Args:
        encoder: module with `channels` and `features(x)` (levels from fine to coarse, each half the one before).
        num_classes: classes of the output, background included.
        decoder_channels: channels of each decoder block, from coarse to fine; one block per skip.

    Raises:
        ValueError: the decoder has not one block per skip.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int = CLASSES,
        decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        *skips, channels = encoder.channels
        if len(decoder_channels) != len(skips):
            raise ValueError(f"expected {len(skips)} decoder channels, one per skip, got {decoder_channels}")
        self.encoder = encoder
        self.decoder = nn.ModuleList()
        for skip, out_channels in zip(reversed(skips), decoder_channels, strict=True):
            self.decoder.append(double_conv(channels + skip, out_channels))
            channels = out_channels
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W], H and W ≥ 32 → logits [B, num_classes, H, W]."""
        size = x.shape[-2:]
        *skips, x = self.encoder.features(x)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="nearest")  # to the skip's size, which may be odd
            x = block(torch.cat([x, skip], dim=1))
        logits = self.head(x)
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits


def unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """The plain U-Net: 64, 128, 256, 512, 1024 channels on the way down."""
    return UNet(UNetEncoder(), num_classes, decoder_channels)
