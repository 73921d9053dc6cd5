"""ARL-UNet: the U-Net decoder over an ARL-CNN18 encoder."""

from nets.arl import arl
from nets.unet import CLASSES, DECODER_CHANNELS, UNet


def arl_unet(
    num_classes: int = CLASSES,
    decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    attention: str = "spatial",
    alpha: str | float = "learn",
) -> UNet:
    """ARL-UNet: as `res_unet`, with attention residual learning in every encoder block (options as for `arl`)."""
    return UNet(arl("18", None, attention, alpha), num_classes, decoder_channels)
