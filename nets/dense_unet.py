"""Dense-UNet: the U-Net decoder over a DenseNet-121 encoder.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017 (arXiv:1608.06993).
The encoder is the one of segmentation_models_pytorch, whose parameter names are torchvision's.
"""

from torch import Tensor, nn

from nets.unet import CLASSES, DECODER_CHANNELS, UNet


class DenseEncoder(nn.Module):
    """DenseNet-121 without its classifier.

    Attributes:
        channels: channels of each level that `features` returns.
        backbone: the layers, under torchvision's parameter names.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported here: it takes seconds, and no other network needs it.
        from segmentation_models_pytorch.encoders import get_encoder

        self.backbone = get_encoder("densenet121", in_channels=3, depth=5, weights=None)
        self.channels = tuple(self.backbone.out_channels[1:])

    def features(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] → five [B, channels[i], ~H/2^(i+1), ~W/2^(i+1)], from fine to coarse."""
        return self.backbone(x)[1:]


def dense_unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """Dense-UNet; the skips come from the stem and the first three dense blocks, the fourth is the bottom."""
    return UNet(DenseEncoder(), num_classes, decoder_channels)
