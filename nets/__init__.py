"""The networks, in PyTorch alone: `create_model(name, num_classes=…, **options)` builds each one by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from nets import arl, arl_unet, dense_unet, mobilenet, res_unet, resnet, unet

__all__ = ["ATTENTIVE", "CLASSIFIERS", "NETS", "SEGMENTERS", "create_model"]

SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "unet": unet.unet,
    "dense_unet": dense_unet.dense_unet,
    "res_unet": res_unet.res_unet,
    "arl_unet": arl_unet.arl_unet,
    "mobilenet_unet": mobilenet.mobilenet_unet,
}
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{layout}": partial(resnet.resnet, layout) for layout in ("14", "18", "34", "50")},
    **{f"arl{layout}": partial(arl.arl, layout) for layout in ("14", "18", "50")},
    "mobilenet": mobilenet.mobilenet,
    "arl_mobilenet": mobilenet.arl_mobilenet,
}
NETS = SEGMENTERS | CLASSIFIERS
ATTENTIVE = frozenset({"arl14", "arl18", "arl50", "arl_mobilenet", "arl_unet"})  # take `attention` and `alpha`


def create_model(name: str, num_classes: int | None = None, **options) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a segmenter (unet, dense_unet, res_unet, arl_unet, mobilenet_unet: images [B, 3, H, W], H and W ≥ 32 →
            logits [B, num_classes, H, W]) or a classifier (resnet14/18/34/50, arl14/18/50, mobilenet, arl_mobilenet:
            → logits [B, num_classes]).
        num_classes: default 2 for segmenters (background, lesion), 3 for classifiers.
        options: of that network, e.g. `attention="channel"`, `alpha="fixed"` (ATTENTIVE), `decoder_channels` (…unet).
            None leaves an option at its default.

    Raises:
        ValueError: no network of that name, or an option's value that is not offered.
        TypeError: an option that the network does not have.
    """
    if name not in NETS:
        raise ValueError(f"no network named {name!r}; there are {', '.join(NETS)}")
    options = {"num_classes": num_classes, **options}
    return NETS[name](**{option: value for option, value in options.items() if value is not None})
