"""Look at a data folder before training on it: `python -m utils.data.check [FOLDER]`.

Every file is decoded once, images at a small size, so that a truncated one is found before training meets it.
Ends with exit code 0 when segmentation training could start (in a folder without any mask: classification), else 1
(2 when there is no such folder).
"""

import argparse
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from utils import UserError
from utils.data.copies import Copy, Looks, find_copies, thumbnail
from utils.data.images import image_size, pair_fault, read_grey
from utils.data.isic import (
    CLASSES,
    LEFT_OUT,
    SPLITS,
    Sample,
    SplitFiles,
    find_files,
    read_labels,
    read_metadata,
    read_split,
)
from utils.data.parallel import attempts
from utils.data.splits import classification_data, later_years, misplaced, refuse_copies
from utils.files import listed, sha256

MANY = 10  # above it, one line for all images without a mask


class ImageFacts(NamedTuple):
    """Of a readable image."""

    size: tuple[int, int]  # (width, height)
    digest: str  # SHA-256 of the file
    thumbnail: np.ndarray


class MaskFacts(NamedTuple):
    """Of a readable mask."""

    size: tuple[int, int]
    fault: str  # what is odd about it, else ""


@dataclass
class Split:
    """The files of one split, what is known of each by id, or why it cannot be read; images by class."""

    files: SplitFiles
    images: dict[str, ImageFacts | UserError]
    masks: dict[str, MaskFacts | UserError]
    used: set[str]  # ids whose files a segmentation run reads: pairs, and the test images with what masks there are
    classes: dict[str, int] = field(default_factory=dict)

    @property
    def readable(self) -> dict[str, ImageFacts]:
        return {id_: facts for id_, facts in self.images.items() if isinstance(facts, ImageFacts)}


@dataclass
class Report:
    """What `inspect_folder` found; one line each. `blockers` say why training could not start."""

    root: Path
    splits: dict[str, Split] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    classification_fault: str = ""

    @property
    def without_masks(self) -> bool:
        """Data for classification alone: no mask, every image readable, labels without fault."""
        splits = self.splits.values()
        readable = all(len(split.readable) == len(split.images) and not split.masks for split in splits)
        return readable and not self.classification_fault

    @property
    def can_start(self) -> bool:
        return not self.blockers or self.without_masks

    def problem(self, text: str, blocks: bool = False) -> None:
        self.problems.append(text)
        self.blockers += [text] if blocks else []

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def __str__(self) -> str:
        lines = [f"{self.root}"]
        for name, split in self.splits.items():
            pairs = len(split.images.keys() & split.masks.keys())
            lines += [f"{name}: {len(split.images)} images, {len(split.masks)} masks, {pairs} pairs"]
            if split.classes:
                lines += ["  classes: " + ", ".join(f"{name} {count}" for name, count in split.classes.items())]
            if sizes := [facts.size for facts in split.readable.values()]:
                stats = "min {:.0f}x{:.0f}, median {:.0f}x{:.0f}, max {:.0f}x{:.0f}; {} distinct"
                stats = stats.format(*np.percentile(sizes, (0, 50, 100), axis=0).ravel(), len(set(sizes)))
                lines += [f"  sizes (width x height, each by itself): {stats}"]
        copies = [self.copy_line(copy) for copy in self.copies]
        for title, found in (("problems", self.problems), ("copies across splits", copies)):
            lines += [f"{title}: {len(found) or 'none'}", *(f"  {line}" for line in found)]
        lines += [f"note: {line}" for line in self.notes]
        if not self.can_start:
            more = f" (and {len(self.blockers) - 1} more)" if len(self.blockers) > 1 else ""
            return "\n".join([*lines, f"training cannot start: {self.blockers[0]}{more}"])
        only = f"segmentation only; classification: {self.classification_fault}" if self.classification_fault else ""
        only = "classification only; segmentation: there are no masks" if self.blockers else only
        return "\n".join([*lines, f"training can start{f' ({only})' if only else ''}"])

    def copy_line(self, copy: Copy) -> str:
        one, other = (f"{s} {self.name(f)}" for s, f in zip(copy.splits, copy.files, strict=True))
        what = "known" if copy.known else "not known"
        if copy.splits[0] == "train":
            what += ", left out of training" if copy.ids[0] in LEFT_OUT else ", stops training"
        return f"{one} = {other}: {copy.kind}; {what}"


def inspect_folder(root: str | Path) -> Report:
    """Read every image, mask and label file under `root` and report on them. Raises UserError without a folder."""
    report = Report(Path(root))
    for name, files in {split: find_files(root, split) for split in SPLITS}.items():
        images = _read(_image_facts, files.images, f"{name} images")
        masks = _read(_mask_facts, files.masks, f"{name} masks")
        used = set(images) if name == "test" else images.keys() & masks.keys()
        report.splits[name] = Split(files, images, masks, used - (LEFT_OUT if name == "train" else set()))
    for name, split in report.splits.items():
        _check_images(report, name, split)
        _check_masks(report, split)
        _check_labels(report, name, split)
        try:
            read_metadata(root, name)
        except UserError as error:
            report.problem(f"{error}")
    _check_leaks(report)
    try:
        refuse_copies(report.copies, classification_data(Path(root))[0])
    except UserError as error:
        report.classification_fault = f"{error}"
    return report


def _read(facts: Callable[[Path], Any], files: dict[str, Path], what: str) -> dict[str, Any]:
    return dict(zip(files, attempts(facts, list(files.values()), what), strict=True))


def _image_facts(path: Path) -> ImageFacts:
    return ImageFacts(image_size(path), sha256(path), thumbnail(path))


def _mask_facts(path: Path) -> MaskFacts:
    grey = read_grey(path)
    values = np.flatnonzero(cv2.calcHist([grey], [0], None, [256], [0, 256]))
    lesion = values > (0 if values[-1] <= 1 else 128)
    fault = "mask is empty (no lesion)" if not lesion.any() else "mask is full (no background)" if lesion.all() else ""
    if not set(values) <= {0, 255}:
        rule = "1 is read as lesion" if values[-1] <= 1 else "above 128 is read as lesion"
        fault += f"{'; ' if fault else ''}mask is not 0/255 ({len(values)} values up to {values[-1]}; {rule})"
    return MaskFacts((grey.shape[1], grey.shape[0]), fault)


def _check_images(report: Report, name: str, split: Split) -> None:
    """Unreadable images, those without a mask, the same file twice; what training would stumble over blocks it."""
    for id_, facts in sorted(split.images.items()):
        if isinstance(facts, UserError):
            report.problem(f"{facts}", id_ in split.used)
    without = [report.name(path) for id_, path in sorted(split.files.images.items()) if id_ not in split.masks]
    if split.masks and len(without) > MANY:
        report.problem(f"{name}: mask missing for {len(without)} images ({listed(without)})")
    elif split.masks:
        report.problems += [f"{path}: mask missing" for path in without]
    if name != "test" and not split.used:
        adjective = {"train": "training", "validation": "validation"}[name]
        report.blockers.append(f"no {adjective} image has a mask under {report.root}")
    same = defaultdict(list)
    for id_, facts in split.readable.items():
        same[facts.digest].append(report.name(split.files.images[id_]))
    for names in same.values():
        if len(names) > 1:
            report.notes.append(f"{name}: the same file under {len(names)} ids: {', '.join(sorted(names))}")


def _check_masks(report: Report, split: Split) -> None:
    """Unreadable, unpaired and odd masks."""
    readable = split.readable
    for id_, mask in sorted(split.masks.items()):
        name = report.name(split.files.masks[id_])
        if id_ not in split.images:
            report.problem(f"{name}: mask without image")
        if isinstance(mask, UserError):
            report.problem(f"{mask}", id_ in split.used)
            continue
        if mask.fault:
            report.problem(f"{name}: {mask.fault}")
        if id_ in readable and readable[id_].size != mask.size:
            fault = pair_fault(readable[id_].size, mask.size)
            sizes = "mask {}x{}, image {}x{}".format(*mask.size, *readable[id_].size)
            odd = fault or f"of another size than its image ({sizes})"
            report.problem(f"{name}: {odd}", blocks=bool(fault) and id_ in split.used)


def _check_labels(report: Report, name: str, split: Split) -> None:
    path, images = split.files.labels, split.images.keys()
    if not images:
        return
    if path is None and name == "test":
        report.notes.append("test: no label file, so classification cannot be scored here")
    elif path is None:
        report.problem(f"{name}: no label file; classification cannot train")
    else:
        try:
            labels = read_labels(path)
        except UserError as error:
            report.problem(f"{error}")
            return
        counts = Counter(CLASSES[labels[id_]] for id_ in images & labels.keys())
        split.classes = {name: counts[name] for name in CLASSES}
        if without := sorted(images - labels.keys()):
            report.problem(f"{report.name(path)}: {len(without)} images of {name} have no label ({listed(without)})")
        if extra := len(labels.keys() - images):
            report.notes.append(f"{report.name(path)}: {extra} labels have no image in {name}; they are not used")


def _check_leaks(report: Report) -> None:
    """What `utils.data.splits` refuses or warns about: ids and photographs in two splits, or in the wrong one."""
    splits = report.splits
    for a, b in itertools.combinations(SPLITS, 2):
        for id_ in sorted(splits[a].images.keys() & splits[b].images.keys()):
            paths = " and ".join(report.name(splits[s].files.images[id_]) for s in (a, b))
            report.problem(f"{id_} is in two splits: {paths}", id_ in splits[a].used & splits[b].used)
    for name, split in splits.items():
        for other, ids in misplaced(name, split.images).items():
            what = f"{len(ids)} {name} images are of the challenge's {other} set ({listed(ids)})"
            first = report.name(split.files.images[ids[0]])
            report.problem(f"{first}: {what}", not split.used.isdisjoint(ids))
    report.copies = find_copies({name: _looks(split) for name, split in splits.items()}, edited=True)
    for copy in report.copies:
        if copy.splits[0] == "train" and all(i in splits[s].used for s, i in zip(copy.splits, copy.ids, strict=True)):
            report.blockers.append(report.copy_line(copy))
    if later := later_years(report.root, {name: read_split(report.root, name, with_labels=False) for name in SPLITS}):
        report.notes.append(later)


def _looks(split: Split) -> Looks:
    facts = split.readable
    samples = [Sample(id_, split.files.images[id_], None, None) for id_ in facts]
    thumbnails = np.array([each.thumbnail for each in facts.values()])
    return Looks(samples, [each.digest for each in facts.values()], thumbnails)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.data.check", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="Data/ISIC2017", help="data folder (default: %(default)s)")
    try:
        report = inspect_folder(parser.parse_args(argv).folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    encoding = sys.stdout.encoding or "utf-8"
    print(f"{report}".encode(encoding, "backslashreplace").decode(encoding))  # a path may have any letters
    return 0 if report.can_start else 1


if __name__ == "__main__":
    sys.exit(main())
