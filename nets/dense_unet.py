"""Dense-UNet: the U-Net decoder over a DenseNet-121 encoder.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017 (arXiv:1608.06993).
"""

from nets.unet import CLASSES, DECODER_CHANNELS, LibraryEncoder, UNet


def dense_unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """Dense-UNet; the skips come from the stem and the first three dense blocks, the fourth is the bottom."""
    return UNet(LibraryEncoder("densenet121"), num_classes, decoder_channels)
