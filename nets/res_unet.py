"""Res-UNet: the U-Net decoder over a ResNet-18 encoder."""

from nets.resnet import resnet
from nets.unet import CLASSES, DECODER_CHANNELS, UNet


def res_unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """Res-UNet; the skips come from the stem and the first three stages, the fourth is the bottom."""
    return UNet(resnet("18", None), num_classes, decoder_channels)
