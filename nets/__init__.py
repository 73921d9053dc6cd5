"""The networks, in PyTorch alone: `create_model(name, num_classes=…, **options)` builds each one by name.

This file is data: PyTorch is imported when a network is built, so that scripts can list the names at once.
A new network is a module here, a line in SEGMENTERS or CLASSIFIERS, and a name for --net in `utils/command_line.py`;
where it starts from pretrained weights also one in `nets/pretrained.py`, and as an experiment a row in
`utils/config.py`. timm's networks need none of these: they are "timm/NAME", as a U-Net's encoder "timm_unet/NAME".
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ALPHA", "ATTENTION", "ATTENTIVE", "CLASSIFIERS", "NETS", "SEGMENTERS", "TIMM", "create_model", "is_segmenter",
]  # fmt: skip

# name: "module:function" that builds the network
SEGMENTERS: dict[str, str] = {
    "unet": "nets.unet:unet",
    "dense_unet": "nets.dense_unet:dense_unet",
    "res_unet": "nets.res_unet:res_unet",
    "arl_unet": "nets.arl_unet:arl_unet",
    "mobilenet_unet": "nets.mobilenet:mobilenet_unet",
    "mobile_sam_unet": "nets.timm_networks:mobile_sam_unet",
}
CLASSIFIERS: dict[str, str] = {
    "resnet14": "nets.resnet:resnet14",
    "resnet18": "nets.resnet:resnet18",
    "resnet34": "nets.resnet:resnet34",
    "resnet50": "nets.resnet:resnet50",
    "arl14": "nets.arl:arl14",
    "arl18": "nets.arl:arl18",
    "arl50": "nets.arl:arl50",
    "mobilenet": "nets.mobilenet:mobilenet",
    "arl_mobilenet": "nets.mobilenet:arl_mobilenet",
}
NETS = SEGMENTERS | CLASSIFIERS
# The same of what stands before a slash and a name of timm's
TIMM = {"timm_unet": "nets.timm_networks:timm_unet", "timm": "nets.timm_networks:TimmClassifier"}
ATTENTIVE = frozenset({"arl14", "arl18", "arl50", "arl_mobilenet", "arl_unet"})  # take `attention` and `alpha`
ATTENTION = ("spatial", "channel", "none")
ALPHA = ("learn", "fixed", "0")


def is_segmenter(name: str) -> bool:
    """Whether a network's logits are a map."""
    return name in SEGMENTERS or name.startswith("timm_unet/")


def create_model(name: str, num_classes: int | None = None, **options) -> "nn.Module":
    """Build a network with random weights.

    Args:
        name: of SEGMENTERS (images [B, 3, H, W], H and W ≥ 32 → logits [B, num_classes, H, W]) or CLASSIFIERS (→ logits
            [B, num_classes]); or timm_unet/NAME or timm/NAME, of which NAME is timm's.
        num_classes: default 2 for segmenters (background, lesion), 3 for classifiers.
        options: of that network, e.g. `attention="channel"`, `alpha="fixed"` (ATTENTIVE), `decoder_channels` (…unet).
            None leaves an option at its default.

    Raises:
        ValueError: no network of that name, or one of timm's that does not fit, or an option's value that is not
            offered.
        TypeError: an option that the network does not have.
    """
    family, _, of_timm = name.partition("/")
    if name not in NETS and family not in TIMM:
        raise ValueError(f"no network named {name!r}; there are {', '.join(NETS)}, timm_unet/NAME, timm/NAME")
    module, function = (NETS.get(name) or TIMM[family]).split(":")
    options = {"num_classes": num_classes, "name": of_timm if family in TIMM else None, **options}
    options = {option: value for option, value in options.items() if value is not None}
    return getattr(import_module(module), function)(**options)
