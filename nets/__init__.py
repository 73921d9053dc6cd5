"""The networks, in pure torch: `create_model(name, num_classes=…, **options)` builds each one by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from nets.arl import arl
from nets.arl_unet import arl_unet
from nets.dense_unet import dense_unet
from nets.mobilenet import arl_mobilenet, mobilenet, mobilenet_unet
from nets.res_unet import res_unet
from nets.resnet import resnet
from nets.unet import unet

__all__ = ["CLASSIFIERS", "NETS", "SEGMENTERS", "create_model"]

SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "dense_unet": dense_unet,
    "res_unet": res_unet,
    "arl_unet": arl_unet,
    "mobilenet_unet": mobilenet_unet,
}
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{layout}": partial(resnet, layout) for layout in ("14", "18", "34", "50")},
    **{f"arl{layout}": partial(arl, layout) for layout in ("14", "18", "50")},
    "mobilenet": mobilenet,
    "arl_mobilenet": arl_mobilenet,
}
NETS = SEGMENTERS | CLASSIFIERS


def create_model(name: str, num_classes: int | None = None, **options) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a segmenter (unet, dense_unet, res_unet, arl_unet, mobilenet_unet: images [B, 3, H, W], H and W ≥ 32 →
            logits [B, num_classes, H, W]) or a classifier (resnet14/18/34/50, arl14/18/50, mobilenet, arl_mobilenet:
            → logits [B, num_classes]).
        num_classes: default 2 for segmenters (background, lesion), 3 for classifiers.
        options: of that network, e.g. `attention="channel"`, `alpha="fixed"` (arl…), `decoder_channels` (…unet).

    Raises:
        ValueError: no network of that name, or an option's value that is not offered.
        TypeError: an option that the network does not have.
    """
    if name not in NETS:
        raise ValueError(f"no network named {name!r}; there are {', '.join(NETS)}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    return NETS[name](**options)
