"""timm's networks, by their names there: as classifiers, and with the U-Net decoder over them.

Wightman, "PyTorch Image Models" (https://github.com/huggingface/pytorch-image-models). Those that take images of any
size and have feature maps each half the one before, at 1/2 (or 1/4) to 1/32 of the image's size.
"""

from difflib import get_close_matches

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data import IMAGENET_DEFAULT_STD as STD
from timm.layers import Conv2dSame
from torch import Tensor, nn

from nets.fast.depthwise import with_fast_depthwise
from nets.mobilenet import DROPOUT
from nets.resnet import CLASSES
from nets.unet import CLASSES as MASK_CLASSES
from nets.unet import UNet

DECODER_CHANNELS = (128, 64, 32, 16)
FITTING = "resnet, efficientnet, mobilenetv3, regnet, densenet or convnext"
STRIDES = ([2, 4, 8, 16, 32], [4, 8, 16, 32])  # of the maps


@torch.no_grad()
def _has_pyramid(backbone: nn.Module) -> bool:
    """Whether its maps are as they should for an image of an awkward size."""
    size = (32, 47)
    try:
        last, maps = backbone.eval().forward_intermediates(torch.zeros(1, 3, *size))
        levels = [(level["num_chs"], level["reduction"]) for level in backbone.feature_info]
    except Exception:  # those that do not take it fail each in a way of its own
        return False
    backbone.train()
    fitting = all(
        x.shape[1] == channels and max(abs(a - b / stride) for a, b in zip(x.shape[2:], size, strict=True)) < 1
        for x, (channels, stride) in zip(maps, levels, strict=True)
    )
    return fitting and [stride for _, stride in levels] in STRIDES and last.shape[2:] == maps[-1].shape[2:]


class TimmNetwork(nn.Module):
    """A network of timm's with random weights.

    Args:
        name: as timm calls it; any tag after a dot names its pretrained weights, which are not loaded here.
        num_classes: outputs; 0 for none.

    Attributes:
        backbone: the layers, under timm's parameter names.
        channels: channels of each map that `features` returns.
        classifier: names of the last layer's parameters in it, which an encoder lacks.
        last_layers: the last ones at 1/16 and 1/32 of the image's size, for Grad-CAM.

    Raises:
        ValueError: timm has no network of that name, or one that takes few sizes, or whose maps are others.
    """

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        known = [*timm.list_models(), *timm.list_pretrained()]
        if name not in known:
            close = ", ".join(get_close_matches(name, known)) or FITTING
            raise ValueError(f"timm {timm.__version__} has no network named {name!r}; close to it: {close}")
        config = timm.get_pretrained_cfg(name)
        misfit = ValueError(
            f"timm/{name} does not fit: a network is needed that takes images of any size and has one classifier, and "
            f"maps at 1/2 (or 1/4) to 1/32 of the size, as {FITTING}"
        )
        if config.fixed_input_size:
            raise misfit  # before it takes memory
        backbone = timm.create_model(name, num_classes=num_classes, drop_rate=DROPOUT)
        self.backbone = with_fast_depthwise(backbone, Conv2dSame)
        if not isinstance(config.classifier, str) or not _has_pyramid(self.backbone):
            raise misfit
        levels = self.backbone.feature_info
        self.channels = tuple(level["num_chs"] for level in levels)
        self.classifier = frozenset(f"{config.classifier}.{kind}" for kind in ("weight", "bias"))
        self.last_layers = tuple(f"backbone.{level['module']}" for level in levels[-2:])
        mean, std, own_mean, own_std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD, config.mean, config.std))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def renormalised(self, x: Tensor) -> Tensor:
        """Images normalised by ImageNet's mean and deviation → by those that the network's weights expect."""
        return torch.addcmul(self.shift, x, self.scale)


class TimmClassifier(TimmNetwork):
    """A network of timm's as a classifier, a fifth of its features dropped in training, its last layer started small.

    By itself timm draws that of some networks from ±1/√num_classes: the first losses of three classes are 13.
    """

    def __init__(self, name: str, num_classes: int = CLASSES) -> None:
        super().__init__(name, num_classes)
        weight, bias = sorted(map(self.backbone.get_parameter, self.classifier), key=torch.numel, reverse=True)
        nn.init.normal_(weight, std=0.01)
        nn.init.zeros_(bias)

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] → maps [B, C, ~H/2^i, ~W/2^i], from fine to coarse."""
        last, levels = self.backbone.forward_intermediates(self.renormalised(x))
        return [*levels[:-1], last]

    def classify(self, x: Tensor) -> Tensor:
        """The last map [B, C, h, w] → logits [B, num_classes]."""
        return self.backbone.forward_head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] → logits [B, num_classes]."""
        return self.classify(self.features(x)[-1])


class TimmEncoder(TimmNetwork):
    """A network of timm's as an encoder: without the layers after the last map.

    Attributes:
        whole: those layers too, as tensors without data by their names, as a file of pretrained weights has them.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, 0)
        self.whole = {name: tensor.to("meta") for name, tensor in self.backbone.state_dict().items()}
        self.backbone.prune_intermediate_layers([*range(len(self.channels))], prune_norm=True)

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] → maps [B, channels[i], ~H/2^i, ~W/2^i], from fine to coarse."""
        return self.backbone.forward_intermediates(self.renormalised(x), intermediates_only=True)


def timm_unet(name: str, num_classes: int = MASK_CLASSES, decoder_channels: tuple[int, ...] | None = None) -> UNet:
    """The U-Net decoder over one of timm's networks; by default of 128 channels at 1/16 of the size, then ever half."""
    encoder = TimmEncoder(name)
    return UNet(encoder, num_classes, decoder_channels or DECODER_CHANNELS[: len(encoder.channels) - 1])


def mobile_sam_unet(num_classes: int = MASK_CLASSES, decoder_channels: tuple[int, ...] | None = None) -> UNet:
    """The same over MobileSAM's image encoder: TinyViT-5M, taught by that of Segment Anything what masks need.

    Zhang et al., "Faster Segment Anything" (arXiv:2306.14289). Its windows fit images whose sides are multiples of 224;
    at other sizes they are padded.
    """
    return timm_unet("tiny_vit_5m_224", num_classes, decoder_channels)
