"""Res-UNet: the U-Net decoder over a ResNet-18 encoder."""

from nets.resnet import resnet
from nets.unet import CLASSES, DECODER_CHANNELS, UNet


def res_unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """Res-UNet. The encoder has as many levels as the decoder has blocks: with four, stem and stages 1 to 3."""
    return UNet(resnet("18", None, depth=len(decoder_channels)), num_classes, decoder_channels)
