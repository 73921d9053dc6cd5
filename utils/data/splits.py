"""Which images each task trains, selects and is tested on; what must not be there stops it."""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, combinations
from pathlib import Path

from utils import UserError
from utils.data.copies import Copy
from utils.data.isic import CLASSES, SPLITS, Sample, find_files, read_labels, read_split
from utils.data.samples import Samples
from utils.logger import log

Data = dict[str, Sequence[Sample]]  # by split


def _ids(steps: str) -> frozenset[str]:
    return frozenset(f"ISIC_{number:07}" for number in accumulate(map(int, steps.split())))


# The ids of the official validation and test images, each given as its distance from the one before.
OFFICIAL = {
    "validation": _ids(
        "1769 83 19 1591 77 43 75 148 532 2314 20 144 99 227 15 79 6 91 12 184 268 229 499 1471 464 1640 10 17 1 16 "
        "8 8 1 31 10 3 2 4 11 1 32 2 32 18 7 3 19 45 3 17 17 17 58 21 25 9 113 24 36 26 130 51 29 3 6 45 72 22 23 1 "
        "4 56 27 17 189 70 10 17 9 22 12 1 70 5 7 7 12 39 34 57 35 35 35 47 92 1 17 84 23 16 33 1 5 85 8 72 46 130 "
        "10 4 25 4 7 2 1 5 2 2 3 1 9 2 2 51 24 97 20 28 74 6 8 1 33 6 4 54 19 62 20 67 32 13 57 59 29 42 2 38 13 "
        "131"
    ),
    "test": _ids(
        "12086 6 3 39 2 11 2 3 26 21 8 8 1 7 17 8 10 7 1 6 1 41 9 7 26 1 1 6 5 3 3 12 1 7 19 11 3 4 15 1 36 9 17 12 "
        "15 11 3 103 2 49 3 14 35 1 28 17 33 1 11 4 51 1 24 13 14 12 7 15 41 5 10 25 2 1 12 24 50 5 5 1 6 15 12 13 "
        "10 4 12 27 1 1 6 4 10 28 2 4 49 19 6 12 3 2 39 2 2 6 7 1 38 1 17 36 12 11 12 2 13 2 19 37 5 18 12 25 5 1 "
        "25 2 1 27 15 4 1 19 9 25 24 6 11 3 6 8 23 5 13 11 10 1 10 8 21 32 18 13 13 7 7 12 19 12 17 4 5 33 2 12 18 "
        "4 15 8 6 4 31 17 13 20 17 6 17 10 4 11 20 3 13 4 4 11 11 3 3 7 28 1 4 2 11 8 7 1 11 1 1 2 10 19 7 1 2 2 3 "
        "9 1 1 2 1 1 3 1 10 3 9 2 10 6 2 2 1 5 17 5 2 1 1 11 3 3 3 4 2 10 1 2 4 1 7 4 2 1 3 2 4 2 2 7 7 1 5 2 4 7 2 "
        "9 9 1 8 1 4 1 4 4 3 4 18 6 3 2 9 6 1 4 4 2 2 1 1 1 1 3 1 1 3 3 1 1 1 1 2 1 1 1 2 2 1 4 1 3 5 10 2 4 4 1 1 "
        "3 1 1 2 2 2 1 2 1 1 1 2 3 4 1 3 1 2 3 1 5 4 1 5 1 3 4 7 7 11 13 13 3 1 6 2 2 1 2 1 3 3 1 2 4 3 1 2 3 1 1 3 "
        "1 2 4 4 2 1 1 1 3 1 4 1 8 8 1 1 3 1 1 4 3 1 1 1 5 1 2 3 3 5 4 3 1 5 1 3 1 3 6 6 3 1 2 3 4 8 2 5 11 1 1 1 "
        "18 1 16 6 2 2 3 3 1 4 1 14 3 4 5 8 1 7 1 4 1 1 1 17 4 7 8 9 2 2 8 5 1 3 25 16 11 7 15 4 3 2 14 11 10 4 7 3 "
        "8 6 5 2 3 4 291 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 1 1 1 1 1 2 1 1 1 1 1 "
        "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 1 1 1 1 1 1 1 1 3 1 1 1 1 1 1 1 1 1 2 1 1 1 1 1 2 1 "
        "1 1 1 1 1 2 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2 1 1 1 1"
    ),
}
LAST_ID = 16072  # the highest of ISIC 2017; the 1,320 extra training images end at 15935


def segmentation_data(root: Path, *, keep_copies: bool = False) -> Data:
    """The images of each split; training and validation keep those with a mask, test keeps all.

    keep_copies: keep the training images that are known copies of others (`utils.data.isic.KNOWN_COPIES`).
    UserError when the folder is not there, a split to train or validate on has no mask, or ids of one split are where
    they must not be (`refuse_foreign_ids`).
    """
    data = {}
    for split in SPLITS:
        samples = read_split(root, split, leave_out_copies=not keep_copies, with_labels=False)
        data[split] = [sample for sample in samples if sample.mask or split == "test"]
        if split != "test" and not data[split]:
            raise UserError(f"{root}: no {split} image with a mask; see python -m utils.data.check {root}")
        without = len(samples) - len(data[split])
        more = f", {without} more left out because they have no mask" if without else ""
        log.info("%s: %d images%s", split, len(data[split]), more)
    refuse_foreign_ids(root, data)
    return {split: Samples(samples) for split, samples in data.items()}


def classification_data(
    root: Path, *, keep_copies: bool = False, require_all: bool = False
) -> tuple[Data, dict[str, list[str]]]:
    """The images of each split with their labels, and by split the ids whose label is there but whose image is not.

    The training labels are those of `ISIC-2017_Training_Aug_Part3_GroundTruth.csv` (2,000 images and 1,320 more of the
    ISIC Archive) where it lies there. Images that are absent are left out, unless `require_all`. Test labels may be
    absent: the samples then have None. `keep_copies` as for `segmentation_data`.

    Raises UserError when labels are faulty (`read_labels`), absent or incomplete, name an image of another split, or
    when ids are where they must not be (`refuse_foreign_ids`).
    """
    data, absent = {}, {}
    files = {split: find_files(root, split) for split in SPLITS}
    ids = {split: files[split].images.keys() for split in SPLITS}
    for split in SPLITS:
        data[split] = read_split(root, split, leave_out_copies=not keep_copies)
        path = files[split].labels
        if path is None:
            if split != "test":
                raise UserError(
                    f"{root}: no labels of the {split} images; ISIC-2017_…_Part3_GroundTruth.csv (Data/README.md)"
                )
            log.info("test: %d images, no labels", len(data[split]))
            continue
        labelled = read_labels(path).keys()
        if foreign := sorted(labelled & set().union(*(ids[other] for other in SPLITS if other != split))):
            raise UserError(
                f"{path}: {len(foreign)} ids are images of another split: {_some(foreign)}; remove their rows"
            )
        if unknown := [sample.id for sample in data[split] if sample.label is None]:
            raise UserError(
                f"{path}: {len(unknown)} {split} images have no label here: {_some(unknown)}; add or remove them"
            )
        absent[split] = sorted(labelled - ids[split])
        if split != "test" and not data[split]:
            raise UserError(f"{root}: no {split} image; see python -m utils.data.check {root}")
        if split == "validation" and data[split]:
            _refuse_one_sided(path, data[split])
        left_out = len(ids[split]) - len(data[split])
        more = f", {left_out} copies of validation or test images left out" if left_out else ""
        if gone := absent[split]:
            text = f"{len(gone)} of the {len(labelled)} labelled images are not there ({_some(gone)})"
            if require_all:
                raise UserError(f"{path}: {text}; fetch them or go on without --require-all")
            more += f", {text}"
        log.info("%s: %d images%s", split, len(data[split]), more)
    refuse_foreign_ids(root, data)
    return {split: Samples(samples) for split, samples in data.items()}, absent


def _refuse_one_sided(path: Path, samples: list[Sample]) -> None:
    for label in range(2):
        positive = sum(sample.label == label for sample in samples)
        if positive in (0, len(samples)):
            which = "no" if positive == 0 else "nothing but"
            raise UserError(
                f"{path}: {which} images of {CLASSES[label]}, so there is no AUC to choose the best epoch by"
            )


def refuse_foreign_ids(root: Path, data: Data) -> None:
    """UserError when an id is in two splits, or an official one in the wrong one; warns of ids above ISIC 2017's."""
    for a, b in combinations(SPLITS, 2):
        there = {sample.id: sample for sample in data[a]}
        if twice := [sample for sample in data[b] if sample.id in there]:
            paths = f"{there[twice[0].id].image} and {twice[0].image}"
            ids = _some([sample.id for sample in twice])
            raise UserError(f"{paths}: {len(twice)} ids are both in {a} and in {b}: {ids}; take them out of one")
    for split in ("train", "validation"):
        for other, ids in misplaced(split, [sample.id for sample in data[split]]).items():
            path = next(sample.image for sample in data[split] if sample.id == ids[0])
            raise UserError(
                f"{path}: {len(ids)} {split} images are of the challenge's {other} set: {_some(ids)}; take them out"
            )
    if later := later_years(root, data):
        log.warning("%s: %s", root, later)


def refuse_copies(found: Sequence[Copy], data: Data, *, keep_copies: bool = False) -> None:
    """UserError when training has a copy of another split's image, a warning with `keep_copies`.

    found: by `utils.data.copies`. Of copies between validation and test, those that are not known are warned about.
    """
    ids = {split: {sample.id for sample in samples} for split, samples in data.items()}
    found = [copy for copy in found if all(i in ids[split] for split, i in zip(copy.splits, copy.ids, strict=True))]
    training = [copy for copy in found if copy.splits[0] == "train"]
    if training and not keep_copies:
        raise UserError(
            f"{_pairs(training)}: {len(training)} training images are copies of images of other splits; take them out, "
            "or train on them all the same with --keep-copies"
        )
    if training:
        log.warning("%s: training on %d copies of images of other splits", _pairs(training), len(training))
    if between := [copy for copy in found if copy.splits[0] != "train" and not copy.known]:
        log.warning("%s: %d validation images are copies of test images", _pairs(between), len(between))


def misplaced(split: str, ids: Collection[str]) -> dict[str, list[str]]:
    """Ids that the challenge has in another split than training or validation, sorted, by that split."""
    wrong = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
    found = {other: sorted(OFFICIAL[other].intersection(ids)) for other in wrong}
    return {other: ids for other, ids in found.items() if ids}


def later_years(root: Path, data: Mapping[str, Collection[Sample]]) -> str:
    """What is to be said of training and validation images with ids above those of ISIC 2017, else "".

    The embedded sample has such ids and is known by its sample.json.
    """
    samples = [sample for split in ("train", "validation") for sample in data[split]]
    ids = sorted(sample.id for sample in samples if int(sample.id.removeprefix("ISIC_")) > LAST_ID)
    if not ids or (root / "sample.json").is_file():
        return ""
    return (
        f"{len(ids)} images have ids above ISIC_{LAST_ID:07}, the last of ISIC 2017: {_some(ids)}; images of later "
        "years may be copies of test images (594 of the 600 lie in ISIC 2019), and scores on these then say little"
    )


def _pairs(copies: Sequence[Copy]) -> str:
    some = [f"{copy.files[0]} = {copy.files[1]} ({copy.kind})" for copy in copies[:3]]
    return ", ".join(some) + (" …" if len(copies) > 3 else "")


def _some(ids: list[str]) -> str:
    return f"{', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}"
