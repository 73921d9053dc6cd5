"""Which images each task trains, selects and is tested on; what must not be there stops it."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from utils import UserError
from utils.config import Config
from utils.data.copies import Copy
from utils.data.isic import (
    CLASSES,
    HAM10000,
    LAST_ID,
    LEFT_OUT,
    OFFICIAL,
    PREFIXES,
    SPLITS,
    SYNTHETIC,
    Sample,
    find_files,
    layout_hint,
    read_labels,
    read_split,
)
from utils.data.own import own_data
from utils.files import listed
from utils.logger import log

Data = dict[str, Sequence[Sample]]  # by split


def read_data(config: Config, *, masks: bool) -> tuple[Config, Data]:
    """The images of each split that the task uses; and the config, with what only a folder of one's own tells."""
    if own := own_data(config, masks=masks):
        return own
    if masks:
        return config, segmentation_data(config.data, keep_copies=config.keep_copies)
    return config, classification_data(config.data, keep_copies=config.keep_copies, require_all=config.require_all)


def segmentation_data(root: Path, *, keep_copies: bool = False) -> Data:
    """The images of each split; training and validation keep those with a mask, test keeps all.

    keep_copies: keep the training images that are known copies of others (`utils.data.isic.KNOWN_COPIES`).
    UserError when the folder is not there, a split to train or validate on has no mask, or ids of one split are where
    they must not be (`refuse_foreign_ids`).
    """
    data = {}
    for split in SPLITS:
        samples = read_split(root, split, leave_out_copies=not keep_copies, with_labels=False)
        data[split] = tuple(sample for sample in samples if sample.mask or split == "test")
        if split != "test" and not data[split]:
            raise UserError(f"{root}: no {split} image with a mask; {layout_hint(root, split)}")
        without = len(samples) - len(data[split])
        more = f", {without} more left out because they have no mask" if without else ""
        log.info("%s: %d images%s", split, len(data[split]), more)
    refuse_foreign_ids(root, data)
    return data


def classification_data(root: Path, *, keep_copies: bool = False, require_all: bool = False) -> Data:
    """The images of each split with their labels.

    The training labels are those of `ISIC-2017_Training_Aug_Part3_GroundTruth.csv` (2,000 images and 1,320 more of the
    ISIC Archive) where it lies there. Images that are absent are left out, unless `require_all`. Test labels may be
    absent: the samples then have None. `keep_copies` as for `segmentation_data`.

    UserError when labels are faulty, absent or incomplete, or ids where they must not be (`refuse_foreign_ids`).
    """
    data, files = {}, {split: find_files(root, split) for split in SPLITS}
    for split in SPLITS:
        samples, path = read_split(root, split, leave_out_copies=not keep_copies), files[split].labels
        data[split] = tuple(samples)
        if path is None and split == "test":
            log.info("test: %d images, no labels", len(samples))
            continue
        if path is None:
            expected = f"{PREFIXES[split]}_Part3_GroundTruth.csv (Data/README.md), or images/ and labels.csv"
            raise UserError(f"{root}: no labels of the {split} images; expected {expected}")
        labelled, images = read_labels(path).keys(), files[split].images.keys()
        _check_labels(path, split, samples, labelled & {id_ for s in SPLITS if s != split for id_ in files[s].images})
        if split != "test" and not samples:
            raise UserError(f"{root}: no {split} image; {layout_hint(root, split)}")
        left_out = len(images) - len(samples)
        more = f", {left_out} copies of validation or test images left out" if left_out else ""
        if gone := sorted(labelled - images):
            text = f"{len(gone)} of the {len(labelled)} labelled images are not there ({listed(gone)})"
            if require_all:
                raise UserError(f"{path}: {text}; fetch them or go on without --require-all")
            more += f", {text}"
        log.info("%s: %d images%s", split, len(samples), more)
    refuse_foreign_ids(root, data)
    return data


def _check_labels(path: Path, split: str, samples: Sequence[Sample], foreign: set[str]) -> None:
    """UserError when labels are of other splits' images (`foreign`), or lack; or when validation has no AUC by them."""
    if foreign:
        some = listed(sorted(foreign))
        raise UserError(f"{path}: {len(foreign)} ids are images of another split: {some}; remove their rows")
    if unknown := [sample.id for sample in samples if sample.label is None]:
        some = listed(unknown)
        raise UserError(f"{path}: {len(unknown)} {split} images have no label here: {some}; add or remove them")
    for label in range(2) if split == "validation" and samples else ():
        positive = sum(sample.label == label for sample in samples)
        if positive in (0, len(samples)):
            which = f"{'nothing but' if positive else 'no'} images of {CLASSES[label]}"
            raise UserError(f"{path}: {which}, so there is no AUC to choose the best epoch by")


def refuse_foreign_ids(root: Path, data: Data) -> None:
    """UserError when an id is where it must not be (`foreign_ids`); warns of ids above ISIC 2017's."""
    for fault in foreign_ids(data):
        raise UserError(fault)
    if later := later_years(root, data):
        log.warning("%s: %s", root, later)


def foreign_ids(data: Data) -> Iterator[str]:
    """A line for ids that are in two splits, or in training or validation and of another split of the challenge."""
    paths = {split: {sample.id: sample.image for sample in samples} for split, samples in data.items()}
    for a, b in combinations(SPLITS, 2):
        if twice := sorted(paths[a].keys() & paths[b].keys()):
            both = f"{paths[a][twice[0]]} and {paths[b][twice[0]]}"
            yield f"{both}: {len(twice)} ids are both in {a} and in {b}: {listed(twice)}; take them out of one"
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if ids := sorted(OFFICIAL[other].intersection(paths[split])):
            what = f"{len(ids)} {split} images are of the challenge's {other} set"
            yield f"{paths[split][ids[0]]}: {what}: {listed(ids)}; take them out"


def refuse_copies(found: Sequence[Copy], data: Data, *, keep_copies: bool = False, grouped: bool = False) -> None:
    """UserError when training has a copy of another split's image, a warning with `keep_copies`.

    grouped: the splits were drawn by groups of images, so that a copy can be kept in one split.

    found: by `utils.data.copies`. Of copies between validation and test, those that are not known are warned about.
    """
    ids = {split: {sample.id for sample in samples} for split, samples in data.items()}
    found = [copy for copy in found if copy.splits[0] != "extra"]
    found = [copy for copy in found if all(i in ids[split] for split, i in zip(copy.splits, copy.ids, strict=True))]
    training = [copy for copy in found if copy.splits[0] == "train"]
    if training and not keep_copies:
        way = "give a photograph and its copy one group in labels.csv" if grouped else "take them out"
        raise UserError(
            f"{_pairs(training)}: {len(training)} training images are copies of images of other splits; {way}, "
            "or train on them all the same with --keep-copies"
        )
    if keep_copies and (copies := {copy.ids[0] for copy in training} | (LEFT_OUT & ids["train"])):
        log.warning(
            "training on %d copies of images of other splits: %s", len(copies), _pairs(training) or "known by id"
        )
    if between := [copy for copy in found if copy.splits[0] != "train" and not copy.known]:
        log.warning("%s: %d validation images are copies of test images", _pairs(between), len(between))


def later_years(root: Path, data: Data) -> str:
    """What is to be said of images to train on with ids of neither ISIC 2017 nor HAM10000; "" of synthetic data."""
    numbers = {each.id: int(each.id.removeprefix("ISIC_")) for s in ("train", "validation") for each in data[s]}
    ids = sorted(i for i, number in numbers.items() if number > LAST_ID and number not in HAM10000)
    if not ids or any((root / name).is_file() for name in SYNTHETIC):
        return ""
    return (
        f"{len(ids)} images have ids above ISIC_{LAST_ID:07}, the last of ISIC 2017: {listed(ids)}; images of later "
        "years may be copies of test images (594 of the 600 lie in ISIC 2019), and scores on these then say little"
    )


def _pairs(copies: Sequence[Copy]) -> str:
    return listed((f"{copy.files[0]} = {copy.files[1]} ({copy.kind})" for copy in copies), longest=1000)
