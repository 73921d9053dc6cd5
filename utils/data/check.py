"""Look at a data folder before training on it: `python -m utils.data.check [FOLDER]`.

Every file is decoded once, images at a small size, so that a truncated one is found before training meets it.
Ends with exit code 0 when segmentation training could start (in a folder without any mask: classification), else 1
(2 when there is no such folder).
"""

import argparse
import itertools
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from utils import UserError
from utils.data.cache import pair_fault
from utils.data.copies import Copy, Looks, find_copies, read_all, thumbnail
from utils.data.images import image_size, read_grey
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
from utils.data.splits import classification_data, later_years, misplaced, refuse_copies
from utils.files import sha256

MANY = 10  # above it, one line for all images without a mask


@dataclass
class SplitCounts:
    """What one split holds; `sizes` are (width, height) of its readable images."""

    images: int
    masks: int
    pairs: int
    classes: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Report:
    """What `inspect_folder` found; one line each. `blockers` say why training could not start."""

    root: Path
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    unreadable: int = 0
    classification_fault: str = ""

    @property
    def without_masks(self) -> bool:
        """Data for classification alone: no mask, every image readable, labels without fault."""
        masks = sum(counts.masks for counts in self.splits.values())
        return not masks and not self.unreadable and not self.classification_fault

    @property
    def can_start(self) -> bool:
        return not self.blockers or self.without_masks

    def __str__(self) -> str:
        lines = [f"{self.root}"]
        for split, counts in self.splits.items():
            lines += [f"{split}: {counts.images} images, {counts.masks} masks, {counts.pairs} pairs"]
            if counts.classes:
                lines += ["  classes: " + ", ".join(f"{name} {n}" for name, n in counts.classes.items())]
            if counts.sizes:
                lines += ["  " + _size_line(counts.sizes)]
        for title, found in (("problems", self.problems), ("copies across splits", self._copy_lines())):
            lines += [f"{title}: {len(found) or 'none'}", *(f"  {line}" for line in found)]
        lines += [f"note: {line}" for line in self.notes]
        if self.blockers and self.without_masks:
            return "\n".join([*lines, "training can start (classification only; segmentation: there are no masks)"])
        if self.blockers:
            more = f" (and {len(self.blockers) - 1} more)" if len(self.blockers) > 1 else ""
            return "\n".join([*lines, f"training cannot start: {self.blockers[0]}{more}"])
        fault = self.classification_fault
        only = f" (segmentation only; classification: {fault})" if fault else ""
        return "\n".join([*lines, f"training can start{only}"])

    def _copy_lines(self) -> list[str]:
        lines = []
        for copy in self.copies:
            names = [f"{s} {_name(f, self.root)}" for s, f in zip(copy.splits, copy.files, strict=True)]
            what = "known" if copy.known else "not known"
            if "train" in copy.splits:
                left_out = copy.splits[0] == "train" and copy.ids[0] in LEFT_OUT
                what += ", left out of training" if left_out else ", stops training"
            lines.append(f"{names[0]} = {names[1]}: {copy.kind}; {what}")
        return lines


@dataclass(frozen=True)
class _ImageFacts:
    size: tuple[int, int]
    digest: str
    thumbnail: np.ndarray


@dataclass(frozen=True)
class _MaskFacts:
    size: tuple[int, int]
    fault: str


def inspect_folder(root: str | Path) -> Report:
    """Read every image, mask and label file under `root` and report on them. Raises UserError without a folder."""
    report = Report(Path(root))
    found = {split: find_files(root, split) for split in SPLITS}
    images = read_all(_image_facts, [path for files in found.values() for path in files.images.values()], "images")
    masks = read_all(_mask_facts, [path for files in found.values() for path in files.masks.values()], "masks")
    for split, files in found.items():
        sizes = [images[path].size for path in files.images.values() if isinstance(images[path], _ImageFacts)]
        pairs = len(files.images.keys() & files.masks.keys())
        report.splits[split] = SplitCounts(len(files.images), len(files.masks), pairs, sizes=sizes)
        _check_files(report, split, files, images, masks)
        _check_labels(report, split, files)
        try:
            read_metadata(report.root, split)
        except UserError as error:
            report.problems.append(f"{error}")
        _check_twice(report, split, files, images)
    for a, b in itertools.combinations(SPLITS, 2):
        for id_ in sorted(found[a].images.keys() & found[b].images.keys()):
            paths = (_name(found[s].images[id_], report.root) for s in (a, b))
            report.problems.append(f"{id_} is in two splits: {' and '.join(paths)}")
            if id_ in _used(a, found[a]) & _used(b, found[b]):
                report.blockers.append(report.problems[-1])
    report.copies = find_copies({split: _looks(files, images) for split, files in found.items()})
    _check_leaks(report, found)
    try:
        refuse_copies(report.copies, classification_data(Path(root))[0])
    except UserError as error:
        report.classification_fault = f"{error}"
    return report


def _check_leaks(report: Report, found: dict[str, SplitFiles]) -> None:
    """What `utils.data.splits` refuses or warns about, beside an id in two splits."""
    used = {split: _used(split, files) for split, files in found.items()}
    for split, files in found.items():
        for other, ids in misplaced(split, files.images).items():
            name = _name(files.images[ids[0]], report.root)
            text = f"{name}: {len(ids)} {split} images are of the challenge's {other} set ({', '.join(ids[:3])} …)"
            report.problems.append(text)
            report.blockers += [text] if used[split].intersection(ids) else []
    for copy, line in zip(report.copies, report._copy_lines(), strict=True):
        if copy.splits[0] == "train" and all(i in used[s] for s, i in zip(copy.splits, copy.ids, strict=True)):
            report.blockers.append(line)
    samples = {split: read_split(report.root, split, with_labels=False) for split in SPLITS}
    if later := later_years(report.root, samples):
        report.notes.append(later)


def _check_files(report: Report, split: str, files: SplitFiles, images: dict, masks: dict) -> None:
    """Unreadable, missing, unpaired and odd files of one split; what training would stumble over is a blocker."""
    used = _used(split, files)
    for id_, path in sorted(files.images.items()):
        if isinstance(images[path], UserError):
            report.unreadable += 1
            report.problems.append(f"{images[path]}")
            report.blockers += [f"{images[path]}"] if id_ in used else []
    without = [path for id_, path in sorted(files.images.items()) if files.masks and id_ not in files.masks]
    if len(without) > MANY:
        names = ", ".join(_name(path, report.root) for path in without[:3])
        report.problems.append(f"{split}: mask missing for {len(without)} images ({names} …)")
    else:
        report.problems += [f"{_name(path, report.root)}: mask missing" for path in without]
    for id_, path in sorted(files.masks.items()):
        name, mask = _name(path, report.root), masks[path]
        if id_ not in files.images:
            report.problems.append(f"{name}: mask without image")
        if isinstance(mask, UserError):
            report.problems.append(f"{mask}")
            report.blockers += [f"{mask}"] if id_ in used else []
            continue
        if mask.fault:
            report.problems.append(f"{name}: {mask.fault}")
        image = images.get(files.images.get(id_))
        if isinstance(image, _ImageFacts) and image.size != mask.size:
            sizes = "mask {}x{}, image {}x{}".format(*mask.size, *image.size)
            fault = pair_fault(image.size, mask.size)
            report.problems.append(f"{name}: {fault or f'of another size than its image ({sizes})'}")
            report.blockers += [report.problems[-1]] if fault and id_ in used else []
    if split != "test" and not used:
        adjective = {"train": "training", "validation": "validation"}[split]
        report.blockers.append(f"no {adjective} image has a mask under {report.root}")


def _used(split: str, files: SplitFiles) -> set[str]:
    """The ids whose files a training run reads: pairs, and the test images with what masks there are."""
    if split == "test":
        return set(files.images)
    return (files.images.keys() & files.masks.keys()) - (LEFT_OUT if split == "train" else frozenset())


def _check_labels(report: Report, split: str, files: SplitFiles) -> None:
    if not files.images:
        return
    if files.labels is None:
        if split == "test":
            report.notes.append("test: no label file, so classification cannot be scored here")
        else:
            report.problems.append(f"{split}: no label file; classification cannot train")
        return
    try:
        labels = read_labels(files.labels)
    except UserError as error:
        report.problems.append(f"{error}")
        return
    counts = Counter(CLASSES[labels[id_]] for id_ in files.images if id_ in labels)
    report.splits[split].classes = {name: counts[name] for name in CLASSES}
    name = _name(files.labels, report.root)
    if without := sorted(files.images.keys() - labels.keys()):
        report.problems.append(f"{name}: {len(without)} images of {split} have no label ({', '.join(without[:3])} …)")
    if extra := len(labels.keys() - files.images.keys()):
        report.notes.append(f"{name}: {extra} labels have no image in {split}; they are not used")


def _check_twice(report: Report, split: str, files: SplitFiles, images: dict) -> None:
    by_digest = defaultdict(list)
    for path in files.images.values():
        if isinstance(images[path], _ImageFacts):
            by_digest[images[path].digest].append(_name(path, report.root))
    for names in by_digest.values():
        if len(names) > 1:
            report.notes.append(f"{split}: the same file under {len(names)} ids: {', '.join(sorted(names))}")


def _image_facts(path: Path) -> _ImageFacts:
    return _ImageFacts(image_size(path), sha256(path), thumbnail(path))


def _looks(files: SplitFiles, images: dict) -> Looks:
    facts = {id_: images[path] for id_, path in files.images.items() if isinstance(images[path], _ImageFacts)}
    samples = [Sample(id_, files.images[id_], None, None) for id_ in facts]
    thumbnails = np.array([each.thumbnail for each in facts.values()])
    return Looks(samples, [each.digest for each in facts.values()], thumbnails)


def _mask_facts(path: Path) -> _MaskFacts:
    grey = read_grey(path)
    values = np.flatnonzero(cv2.calcHist([grey], [0], None, [256], [0, 256]))
    lesion = values > (0 if values[-1] <= 1 else 128)
    fault = "mask is empty (no lesion)" if not lesion.any() else "mask is full (no background)" if lesion.all() else ""
    if not set(values) <= {0, 255}:
        rule = "1 is read as lesion" if values[-1] <= 1 else "above 128 is read as lesion"
        fault += f"{'; ' if fault else ''}mask is not 0/255 ({len(values)} values up to {values[-1]}; {rule})"
    return _MaskFacts((grey.shape[1], grey.shape[0]), fault)


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _size_line(sizes: list[tuple[int, int]]) -> str:
    width, height = np.array(sizes).T
    stats = ", ".join(
        f"{name} {f(width):.0f}x{f(height):.0f}" for name, f in (("min", min), ("median", np.median), ("max", max))
    )
    return f"sizes (width x height, each by itself): {stats}; {len(set(sizes))} distinct"


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
