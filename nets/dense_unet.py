"""Dense-UNet: the U-Net decoder over a DenseNet-121 encoder.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017 (arXiv:1608.06993).
The encoder is the one of segmentation_models_pytorch, whose parameter names are torchvision's.
"""

from torch import Tensor, nn

from nets.unet import CLASSES, DECODER_CHANNELS, UNet


class DenseEncoder(nn.Module):
    """DenseNet-121 up to level `depth` (2 to 5).

    Attributes:
        channels: channels of each level: 64, 256, 512, 1024, 1024.
        backbone: the layers, under torchvision's parameter names.
    """

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        # Imported here: it takes seconds, and no other network needs it.
        from segmentation_models_pytorch.encoders import get_encoder

        self.backbone = get_encoder("densenet121", in_channels=3, depth=depth, weights=None)
        self.channels = tuple(self.backbone.out_channels[1:])
        if depth < 5:
            _drop_unused(self.backbone.features, depth)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] → one [B, channels[i], ~H/2^(i+1), ~W/2^(i+1)] per level, from fine to coarse."""
        return self.backbone(x)[1:]


def _drop_unused(layers: nn.Module, depth: int) -> None:
    """Remove what lies behind level `depth`: it would be trained, stored and sent around for nothing."""
    last = layers.get_submodule(f"transition{depth - 1}")  # its norm and ReLU end the level
    del last.conv, last.pool, layers.norm5
    for level in range(depth, 5):
        delattr(layers, f"denseblock{level}")
        if level < 4:
            delattr(layers, f"transition{level}")


def dense_unet(num_classes: int = CLASSES, decoder_channels: tuple[int, ...] = DECODER_CHANNELS) -> UNet:
    """Dense-UNet. The encoder has as many levels as the decoder has blocks."""
    return UNet(DenseEncoder(len(decoder_channels)), num_classes, decoder_channels)
