"""Write a trained network as one ONNX file that takes photographs of any size and puts out probabilities.

    python -m utils.inference.export results/cls-b1/seed5 model.onnx

The first argument is a run's folder with its weights. Resizing, normalisation and the averaging over patches and flips
that the run was scored by are part of the file, as is what it is and how good (docs/onnx.md).
"""

import argparse
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from utils import UserError
from utils.data.loader import MEAN, STD
from utils.data.transforms import CENTER, FRAME, TEST_PATCHES, TRAIN_TRANSFORMS, Patch, in_center
from utils.device import find_device
from utils.evaluation.runs import IMAGES, RunResult, read_run
from utils.files import readable_size, written_whole
from utils.inference.segmentation import LESION
from utils.inference.trained import load_network
from utils.logger import log, run_script

Span = tuple[Tensor, Tensor]  # where a side of a box starts and how long it is, pixels
Box = tuple[Span, Span]  # of rows and of columns
Sides = tuple[Tensor, Tensor]  # height and width


def _shares(pixels: Tensor, span: Span, count: Tensor, cells: int, shrinks: Tensor) -> Tensor:
    """How much of each pixel is in each of the `count` cells that a span is divided into: float32 [cells, pixels].

    By area where it shrinks, else linear between the middles. Cells from `count` on mean nothing.
    """
    (start, length), cell = span, torch.arange(cells)[:, None]
    left, right = cell * length, (pixels - start) * count  # in units of 1 / count of a pixel: whole numbers
    area = (torch.minimum(left + length, right + count) - torch.maximum(left, right)).clamp(min=0) / length
    middle = ((cell + 0.5) * length / count - 0.5).clamp(min=0)
    linear = (1 - (start + torch.minimum(middle, (length - 1).float()) - pixels).abs()).clamp(min=0)
    return torch.where(shrinks, area, linear)


def resized(image: Tensor, box: Box, size: Sides, room: tuple[int, int]) -> Tensor:
    """What `utils.data.images.resized` makes of a box of photographs, within a level.

    image: whole numbers 0 to 255, float32 [N, H, W, 3]; size: (height, width) that the box gets; room: (height, width)
    of what is put out, at least that; what lies beyond it means nothing.
    """
    (rows, columns), (height, width), sides = box, size, shape_as_tensor(image)
    shrinks = (height <= rows[1]) & (width <= columns[1])
    down, across = (
        _shares(torch.arange(side), *one, shrinks)
        for side, one in zip(sides[1:3], ((rows, height, room[0]), (columns, width, room[1])), strict=True)
    )
    image = torch.einsum("yh,nhwc,xw->nyxc", down, image, across)
    halves = (rows[1] == 2 * height) & (columns[1] == 2 * width)  # OpenCV rounds .5 up there, elsewhere to even numbers
    shrunk = torch.where(halves, (image + 0.5).floor(), image.round())
    return torch.where(shrinks, shrunk, (image + 0.375).floor())  # its whole numbers of 16 bits lose an eighth


def _box(patch: Patch, size: Sides) -> Box:
    """Of a patch in a frame of that (height, width), as `utils.data.transforms.take` rounds it."""
    box = []
    for side, start, share in zip(size, patch[1::-1], patch[:1:-1], strict=True):
        first, end = ((side.double() * place).round().long() for place in (start, start + share))
        box.append((first, end - first))
    return tuple(box)


class Exported(nn.Module):
    """A network with all that happens to a photograph before and after it.

    run: whose network it is; it tells the size of the network's input and what is averaged.
    """

    def __init__(self, run: RunResult, network: nn.Module) -> None:
        super().__init__()
        self.run, self.network = run, network
        self.room = tuple(run.settings["size"])[::-1]  # (height, width)
        self.flips = [[3], [2], [2, 3]] if run.metrics.get("flips") else []  # axes of [B, C, H, W]
        self.mean, self.std = (255 * torch.tensor(each) for each in (MEAN, STD))
        self.size = tuple(map(torch.tensor, self.room))

    def forward(self, photographs: Tensor) -> Tensor:
        """uint8 [N, H, W, 3], RGB → the probabilities, float32."""
        shape = shape_as_tensor(photographs)
        return self.predict(photographs.float(), (shape[1], shape[2]))

    def probabilities(self, views: Tensor) -> Tensor:
        """Of views [B, h, w, 3] at the network's size, averaged over the flips: [B, classes, …]."""
        images = ((views - self.mean) / self.std).permute(0, 3, 1, 2)
        found = self.network(torch.cat([images, *map(images.flip, self.flips)])).softmax(1)
        found = found.unflatten(0, (1 + len(self.flips), -1))
        if found.ndim == 5:  # maps, to be turned back
            turned = [found[number].flip(axes) for number, axes in enumerate(self.flips, 1)]
            found = torch.stack([found[0], *turned])
        return found.mean(0)


class ExportedSegmenter(Exported):
    """Puts out the lesion's probability at the photograph's own size, [N, H, W]: above 0.5 is the mask."""

    def predict(self, image: Tensor, sides: Sides) -> Tensor:
        frame = resized(image, _box(FRAME, sides), self.size, self.room)
        lesion = self.probabilities(frame)[:, LESION, None]
        return nn.functional.interpolate(lesion, image.shape[1:3], mode="bilinear", align_corners=False)[:, 0]


class ExportedClassifier(Exported):
    """Puts out the probabilities of the run's classes, [N, C]."""

    def predict(self, image: Tensor, sides: Sides) -> Tensor:
        kept = TRAIN_TRANSFORMS[self.run.settings["train_views"]]
        frame, size = self.stored(image, FRAME, sides, kept.cached_scale, self.room)
        if kept.center_scale:
            center, center_size = self.stored(image, CENTER, sides, kept.center_scale, (1, 1))
            finer = [inner > CENTER[2] * side.double() for inner, side in zip(center_size, size, strict=True)]
        views = []
        for patch in TEST_PATCHES[self.run.metrics["views"]]:
            view = resized(frame, _box(patch, size), self.size, self.room)
            if kept.center_scale and (inner := in_center(patch)):
                fine = resized(center, _box(inner, center_size), self.size, self.room)
                view = torch.where(finer[0] & finer[1], fine, view)
            views.append(view)
        return self.probabilities(torch.cat(views)).unflatten(0, (len(views), -1)).mean(0)

    def stored(
        self, image: Tensor, patch: Patch, sides: Sides, scale: float, least: tuple[int, int]
    ) -> tuple[Tensor, Sides]:
        """A patch as a cache keeps it, and its (height, width), which `utils.data.transforms.cache_sizes` tells.

        `scale` times the network's size, but no finer than the photograph, unless `least` is: (height, width).
        """
        most = tuple(max(round(scale * side), low) for side, low in zip(self.room, least, strict=True))
        there = [(side.double() * share).long() for side, share in zip(sides, patch[:1:-1], strict=True)]
        size = tuple(side.clamp(low, high) for side, low, high in zip(there, least, most, strict=True))
        return resized(image, _box(patch, sides), size, most), size


EXPORTED = {"segmentation": ExportedSegmenter, "classification": ExportedClassifier}


def metadata(run: RunResult) -> dict[str, str]:
    """What the file tells of itself, as text or JSON."""
    settings, weights = run.settings, run.settings.get("weights") or {}
    extra = f"; {' and '.join(settings['extra'])}: {settings['extra_images']}" if settings.get("extra") else ""
    told = {"segmentation": {"classes": ["lesion"], "threshold": 0.5}, "classification": {"classes": run.classes}}
    return {name: json.dumps(value) for name, value in told[run.task].items()} | {
        "notice": "For research on methods, never for a decision about a patient: not a medical device.",
        "task": run.task,
        "input": "photographs: uint8 [N, H, W, 3], RGB, upright",
        "network": settings["net"],
        "starts_from": weights.get("source") or weights.get("file") or "random weights",
        "trained_on": f"{run.data}: {settings.get('train_images')}{extra}",
        "licence_of_photographs": run.licences,
        "averaged": f"patches: {run.metrics.get('views', '1')}, flips: {run.metrics.get('flips', False)}",
        "scores": json.dumps({split: run.metrics[split] for split in IMAGES}),
        "run": f"{run.experiment}, seed {run.seed}",
        "commit": run.config.get("git_commit", ""),
    }


def onnx_file(run: RunResult, network: nn.Module) -> bytes:
    """The content of the ONNX file of a run's network. UserError where the package onnx is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{error}: pip install -r requirements-optional.txt") from error
    file, exported = io.BytesIO(), EXPORTED[run.task](run, network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what in the networks is fixed by the size of their input, and of `dynamo`
        torch.onnx.export(
            exported, (torch.zeros(2, 60, 70, 3, dtype=torch.uint8),), file,
            input_names=["photographs"], output_names=["probabilities"], opset_version=17,
            dynamic_axes={"photographs": {0: "N", 1: "H", 2: "W"}, "probabilities": {0: "N"}},
            dynamo=False,  # the newer way takes ten times as long
        )  # fmt: skip
    model = onnx.load_model_from_string(file.getvalue())
    onnx.helper.set_model_props(model, metadata(run))
    return model.SerializeToString()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.inference.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, with its weights")
    parser.add_argument("file", type=Path, help="the ONNX file to write")
    args = parser.parse_args(argv)
    run = read_run(args.run)
    content = onnx_file(run, load_network(run, find_device("cpu")))
    with written_whole(args.file) as file:
        file.write(content)
    log.info("%s: %s, %s", args.file, readable_size(len(content)), metadata(run)["notice"])


if __name__ == "__main__":
    run_script(main)
