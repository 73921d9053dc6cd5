"""Look at a data folder before training on it: `python -m utils.data.check [FOLDER]`.

Every file is decoded once, so that a truncated one is found before training meets it. Exit code 0 when segmentation
training could start (in a folder without any mask: classification), else 1; 2 when there is no such folder.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import UserError
from utils.config import configure
from utils.data import isic
from utils.data.copies import Copy, Looks, find_copies, thumbnail
from utils.data.images import Frame, pair_fault, read_frame, stored_mask
from utils.data.isic import CLASSES, SPLITS, Sample, SplitFiles
from utils.data.own import Folder, drawn_splits, is_own, oddities, read_folder
from utils.data.parallel import attempts
from utils.data.splits import foreign_ids, later_years, read_data, refuse_copies
from utils.files import listed, sha256
from utils.logger import log, run_script


class ImageFacts(NamedTuple):
    frame: Frame
    digest: str  # SHA-256 of the file
    thumbnail: np.ndarray


@dataclass
class Split:
    """The files of one split, what is known of the readable ones by id, images by class."""

    files: SplitFiles
    images: dict[str, ImageFacts] = field(default_factory=dict)
    masks: dict[str, tuple[Frame, str]] = field(default_factory=dict)  # and what is odd about it, "" of most
    classes: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """What `inspect_folder` found; one line each. The faults say why a task's training could not start, else ""."""

    root: Path
    splits: dict[str, Split] = field(default_factory=dict)
    bad_files: dict[Path, str] = field(default_factory=dict)  # why they stop who uses them
    problems: list[str] = field(default_factory=list)  # others
    copies: list[Copy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    segmentation_fault: str = ""
    classification_fault: str = ""

    @property
    def fault(self) -> str:
        """Why training cannot start, in a folder without any mask classification's; else ""."""
        masks = any(split.files.masks for split in self.splits.values())
        return self.segmentation_fault if masks else self.segmentation_fault and self.classification_fault

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def __str__(self) -> str:
        lines = [f"{self.root}"]
        for name, split in self.splits.items():
            images, masks = split.files.images.keys(), split.files.masks.keys()
            lines += [f"{name}: {len(images)} images, {len(masks)} masks, {len(images & masks)} pairs"]
            if split.classes:
                lines += ["  classes: " + ", ".join(f"{name} {count}" for name, count in split.classes.items())]
            if sizes := [facts.frame.size for facts in split.images.values()]:
                stats = "min {:.0f}x{:.0f}, median {:.0f}x{:.0f}, max {:.0f}x{:.0f}; {} distinct"
                stats = stats.format(*np.percentile(sizes, (0, 50, 100), axis=0).ravel(), len(set(sizes)))
                lines += [f"  sizes (width x height, each by itself): {stats}"]
        copies = [self._copy_line(copy) for copy in self.copies]
        problems = [*self.bad_files.values(), *self.problems]
        for title, found in (("problems", problems), ("copies across splits", copies)):
            lines += [f"{title}: {len(found) or 'none'}", *(f"  {line}" for line in found)]
        lines += [f"note: {line}" for line in self.notes]
        end = "training can start"
        if self.fault:
            end = f"training cannot start: {self.fault}"
        elif self.segmentation_fault:
            end += " (classification only; segmentation: there are no masks)"
        elif self.classification_fault:
            end += f" (segmentation only; classification: {self.classification_fault})"
        return "\n".join([*lines, end])

    def _copy_line(self, copy: Copy) -> str:
        one, other = (f"{s} {self.name(f)}" for s, f in zip(copy.splits, copy.files, strict=True))
        what = "known" if copy.known else "not known"
        if copy.splits[0] == "train":
            stops = "stops training" if copy.near else "take one of them out"
            what += ", left out of training" if copy.ids[0] in isic.LEFT_OUT else f", {stops}"
        return f"{one} = {other}: {copy.kind}; {what}"


def inspect_folder(root: str | Path) -> Report:
    """Read every image, mask and label file under `root` and report on them. Raises UserError without a folder."""
    report = Report(Path(root))
    folder = read_folder(report.root) if is_own(report.root) else None
    report.splits = _own_splits(folder) if folder else {name: Split(isic.find_files(root, name)) for name in SPLITS}
    for name, split in report.splits.items():
        split.images = _read(report, _image_facts, split.files.images, f"{name} images")
        split.masks = _read(report, _mask_facts, split.files.masks, f"{name} masks")
        _note_same_files(report, name, split)
        if folder:
            counts = Counter(folder.classes[folder.labels[i]] for i in split.files.images if i in folder.labels)
            split.classes = {name: counts[name] for name in folder.classes}
            continue
        if not (split.files.images and split.files.masks) and name != "test":
            report.problems.append(f"{name}: images or masks are not there; {isic.layout_hint(root, name)}")
        if short := [path.name for id_, path in sorted(split.files.masks.items()) if path.stem == id_]:
            report.notes.append(f"{name}: {len(short)} masks without _segmentation in their names, such as {short[0]}")
        _check_pairs(report, name, split)
        _check_labels(report, name, split)
        try:
            isic.read_metadata(root, name)
        except UserError as error:
            report.problems.append(f"{error}")
    _check_masks(report)
    report.copies = find_copies({name: _looks(split) for name, split in report.splits.items()}, edited=True)
    if folder:
        report.problems += dict.fromkeys(line for masks in (True, False) for line in oddities(folder, masks=masks))
        report.notes.append(f"a folder of one's own, {_how_split(folder)}")
    else:
        data = {name: _samples(split.files.images) for name, split in report.splits.items()}
        report.problems += foreign_ids(data)
        report.notes += filter(None, [later_years(report.root, data)])
    report.segmentation_fault, report.classification_fault = (_fault(report, masks) for masks in (True, False))
    return report


def _own_splits(folder: Folder) -> dict[str, Split]:
    """As training would split it without flags."""
    ids = sorted(folder.images.keys() | folder.masks.keys())
    drawn = drawn_splits(folder, ids, configure(data=folder.root, task="segmentation"))

    def of(split: str, files: Mapping[str, Path]) -> dict[str, Path]:
        return {id_: path for id_, path in files.items() if drawn[id_] == split}

    return {name: Split(SplitFiles(of(name, folder.images), of(name, folder.masks), None, None)) for name in SPLITS}


def _how_split(folder: Folder) -> str:
    given = "split as its column says" if folder.given else "split 0.8 0.1 0.1 by chance (--split, --fold)"
    if folder.groups:
        return f"{given}, groups kept together"
    way = f"; not read: {listed(folder.unread, 6)}; rename one to group to keep its photographs together"
    return f"{given}, every image by itself (no column group{way if folder.unread else ''})"


def _read(report: Report, facts: Callable[[Path], Any], files: dict[str, Path], what: str) -> dict[str, Any]:
    found = {}
    for (id_, path), result in zip(files.items(), attempts(facts, list(files.values()), what), strict=True):
        if isinstance(result, UserError):
            report.bad_files[path] = f"{result}"
        else:
            found[id_] = result
    return found


def _image_facts(path: Path) -> ImageFacts:
    return ImageFacts(read_frame(path), sha256(path), thumbnail(path))


def _mask_facts(path: Path) -> tuple[Frame, str]:
    mask = stored_mask(path)
    lesion = [value > mask.above for value in mask.values]
    odd = "mask is empty (no lesion)" if not any(lesion) else "mask is full (no background)" if all(lesion) else ""
    if not set(mask.values) <= {0, 255}:
        rule = f"above {mask.above}" if mask.above else f"{mask.values[-1]}"
        odd += f"{'; ' if odd else ''}mask is not 0/255 ({rule} is read as lesion)"
    return mask.frame, odd


def _check_pairs(report: Report, name: str, split: Split) -> None:
    images, masks = split.files.images, split.files.masks
    without = [report.name(path) for id_, path in sorted(images.items()) if id_ not in masks]
    if masks and without:
        report.problems.append(f"{name}: mask missing for {len(without)} images: {listed(without, most=10)}")
    if alone := [report.name(path) for id_, path in sorted(masks.items()) if id_ not in images]:
        report.problems.append(f"{listed(alone, most=1)}: mask without image")


def _note_same_files(report: Report, name: str, split: Split) -> None:
    same = defaultdict(list)
    for id_, facts in sorted(split.images.items()):
        same[facts.digest].append(report.name(split.files.images[id_]))
    twice = [names for names in same.values() if len(names) > 1]
    report.notes += [f"{name}: the same file under {len(names)} ids: {', '.join(names)}" for names in twice]


def _check_masks(report: Report) -> None:
    """What is odd about masks: one line a kind, with an example. A mask that does not fit its image is a bad file."""
    kinds = defaultdict(list)
    for split in report.splits.values():
        for id_, (frame, oddity) in sorted(split.masks.items()):
            path, image = split.files.masks[id_], split.images.get(id_)
            if oddity:
                kinds[oddity].append(report.name(path))
            if image and (fault := pair_fault(image.frame, frame)):
                report.bad_files[path] = f"{report.name(path)}: {fault}"
            elif image and image.frame.size != frame.size:
                sizes = "mask {}x{}, image {}x{}".format(*frame.size, *image.frame.size)
                kinds["of another size than its image"].append(f"{report.name(path)} ({sizes})")
    report.problems += [f"{listed(names, most=1)}: {kind}" for kind, names in kinds.items()]


def _check_labels(report: Report, name: str, split: Split) -> None:
    path, images = split.files.labels, split.files.images.keys()
    if not path or not images:
        return
    try:
        labels = isic.read_labels(path)
    except UserError as error:
        report.problems.append(f"{error}")
        return
    counts, file = Counter(CLASSES[labels[id_]] for id_ in images & labels.keys()), report.name(path)
    split.classes = {name: counts[name] for name in CLASSES}
    if without := sorted(images - labels.keys()):
        report.problems.append(f"{file}: {len(without)} images of {name} have no label ({listed(without)})")
    if extra := len(labels.keys() - images):
        report.notes.append(f"{file}: {extra} labels have no image in {name}; they are not used")


def _samples(images: Mapping[str, Path]) -> list[Sample]:
    return [Sample(id_, path, None, None) for id_, path in images.items()]


def _looks(split: Split) -> Looks:
    facts = split.images.values()
    samples = _samples({id_: split.files.images[id_] for id_ in split.images})
    return Looks(samples, [each.digest for each in facts], np.array([each.thumbnail for each in facts]))


def _fault(report: Report, masks: bool) -> str:
    """Why training on the images, and their masks, could not start; else ""."""
    log.disabled = True  # the report says it
    try:
        task = "segmentation" if masks else "classification"
        _, data = read_data(configure(task=task, data=report.root), masks=masks)
        refuse_copies([copy for copy in report.copies if copy.near], data)
    except UserError as error:
        return f"{error}"
    finally:
        log.disabled = False
    samples = [sample for samples in data.values() for sample in samples]
    files = [file for sample in samples for file in (sample.image, sample.mask)[: 1 + masks]]
    bad = [report.bad_files[file] for file in files if file in report.bad_files]
    return bad[0] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "") if bad else ""


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.data.check", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="Data/ISIC2017", help="data folder (default: %(default)s)")
    report = inspect_folder(parser.parse_args(argv).folder)
    print(report)
    return 1 if report.fault else 0


if __name__ == "__main__":
    run_script(lambda: sys.exit(main()))
