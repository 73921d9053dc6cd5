"""What trained networks say of one photograph: outline, classes, where they look, and what speaks against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from utils.data.cache import load_image
from utils.data.images import image_size, read_image
from utils.data.loader import to_input
from utils.data.transforms import Pixels, Size
from utils.device import Precision
from utils.evaluation.runs import RunResult
from utils.inference.likeness import pixel_faults, read_likeness
from utils.inference.saliency import class_activation_maps
from utils.inference.segmentation import enlarged
from utils.inference.trained import load_network, predict_photographs, stored_sizes, whole_frame

NOTICE = "For research, not a medical device"
WIDEST, NARROWEST = 1600, 640  # pixels of the longer side of what is shown: smaller photographs are enlarged


@dataclass(frozen=True)
class Loaded:
    """A photograph in memory.

    Attributes:
        size: (width, height) of the file, upright.
        stored: as each network has it kept.
        shown: as it is looked at, uint8 [H, W, 3].
    """

    size: Size
    stored: tuple[Pixels, ...]
    shown: np.ndarray


@dataclass(frozen=True)
class Finding:
    """What networks say of a photograph; None or empty where there is no network for it.

    Attributes:
        size: (width, height) of the photograph.
        lesion: probability of each place to be lesion, float32 [h, w] over the whole frame.
        classes: probability by class; they add up to 1.
        saliency: what each place adds to the most probable class, float32 [h, w] (class activation map).
        warnings: what speaks against believing the rest.
        spread: of several networks, whose mean the above is, the standard deviation: of each class's probability, or
            of the lesion's, as the mean over the places of the mask.
    """

    size: Size
    lesion: np.ndarray | None
    classes: dict[str, float]
    saliency: np.ndarray | None
    warnings: tuple[str, ...]
    spread: Mapping[str, float] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The most probable class, in words."""
        return max(self.classes, key=self.classes.__getitem__).replace("_", " ")

    @cached_property
    def probability(self) -> np.ndarray:
        """`lesion` at the photograph's own size."""
        return enlarged(self.lesion, self.size)

    @cached_property
    def mask(self) -> np.ndarray:
        """bool [height, width]."""
        return self.probability > 0.5

    def row(self) -> dict[str, str]:
        """For a table: probabilities to 4 digits, class, share of the frame, whether its edge is lesion, warnings."""
        row, warnings = {name: f"{value:.4f}" for name, value in self.classes.items()}, list(self.warnings)
        row |= {"class": self.first} if self.classes else {}
        if self.lesion is not None:
            mask = self.mask
            edge = any(side.any() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
            row |= {"lesion_share": f"{mask.mean():.4f}", "touches_border": "yes" if edge else "no"}
            warnings += [] if mask.any() else ["no lesion found"]
        row |= {f"{name}_spread": f"{value:.4f}" for name, value in self.spread.items()}
        return row | {"warnings": "; ".join(warnings)}


class Reader:
    """A finished run's network, ready to be shown photographs. UserErrors as of `load_network`."""

    def __init__(self, run: RunResult, precision: Precision) -> None:
        self.run, self.precision = run, precision
        self.model = load_network(run, precision.device)
        self.likeness = read_likeness(run.folder)
        self.synthetic = bool(run.config.get("synthetic"))

    def warnings(self, frame: np.ndarray, likeness: bool) -> list[str]:
        """Of a whole frame uint8 [h, w, 3]; by the likeness to the training images too, or by the rest alone."""
        told = [f"{self.run.experiment} was trained on drawn images: of photographs it knows nothing"] * self.synthetic
        told += pixel_faults(frame)
        if likeness and self.likeness and self.likeness.unlike(self.model, frame):
            told.append("unlike the training images")
        return told


def load(readers: Sequence[Reader], path: Path) -> Loaded:
    """A photograph for `examine`. UserError when it cannot be read."""
    size = image_size(path)
    sizes = [stored_sizes(reader.run, size) for reader in readers]
    kept = {each: load_image(path, each) for each in dict.fromkeys(sizes)}
    stored = tuple(kept[each] for each in sizes)
    scale = min(max(NARROWEST / max(size), 1), WIDEST / max(size))
    return Loaded(size, stored, read_image(path, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))))


def examine(readers: Sequence[Reader], loaded: Loaded) -> Finding:
    """What the readers say of one photograph that they loaded; alone, so that no other one matters.

    Of several segmenters, or classifiers of the same classes: the mean, and by how much they differ. Where classifiers
    know their training images, they alone tell what is unlike these: to a segmenter, lesions that fill the frame are.
    """
    judges = [each for each in readers if each.run.task == "classification" and each.likeness] or readers
    lesions, classifiers, warnings, spread = [], [], [], {}
    for reader, pixels in zip(readers, loaded.stored, strict=True):
        (said,) = predict_photographs(reader.run, reader.model, [pixels], reader.precision)
        frame = whole_frame(reader.run, pixels)
        warnings += reader.warnings(frame, likeness=reader in judges)
        if reader.run.task == "segmentation":
            lesions.append(said)
        else:
            classifiers.append((reader, said, to_input(torch.from_numpy(frame[None]), reader.precision.device)))
    lesion, classes, saliency = np.mean(lesions, axis=0) if lesions else None, {}, None
    if len(lesions) > 1:
        there = np.std(lesions, axis=0, ddof=1)[lesion > 0.5]
        spread["lesion"] = float(there.mean()) if there.size else 0.0
    if classifiers:
        each, names = np.array([said for _, said, _ in classifiers]), classifiers[0][0].run.classes
        classes = dict(zip(names, map(float, each.mean(axis=0)), strict=True))
        first = int(each.mean(axis=0).argmax())
        maps = [class_activation_maps(reader.model, image, first)[0] for reader, _, image in classifiers]
        saliency = torch.stack(maps).mean(0).cpu().numpy()
        if len(each) > 1:
            spread |= zip(names, map(float, each.std(axis=0, ddof=1)), strict=True)
    return Finding(loaded.size, lesion, classes, saliency, tuple(dict.fromkeys(warnings)), spread)
