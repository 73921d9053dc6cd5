"""Which images each task trains, selects and is tested on; what must not be there stops it."""

from pathlib import Path

from utils import UserError
from utils.data import CLASSES, SPLITS, Sample, find_files, read_labels, read_split
from utils.logger import log

Data = dict[str, list[Sample]]  # by split


def segmentation_data(root: Path, *, keep_copies: bool = False) -> Data:
    """The images of each split; training and validation keep those with a mask, test keeps all.

    keep_copies: train on the known copies of validation and test images too (`utils.data.KNOWN_COPIES`).
    UserError when the folder is not there, a split to train or validate on has no mask, or an image is in two splits.
    """
    data = {}
    for split in SPLITS:
        samples = read_split(root, split, leave_out_copies=not keep_copies, with_labels=False)
        data[split] = [sample for sample in samples if sample.mask or split == "test"]
        if split != "test" and not data[split]:
            raise UserError(f"{root}: no {split} image with a mask; see python -m utils.inspect_data {root}")
        without = len(samples) - len(data[split])
        more = f", {without} more left out because they have no mask" if without else ""
        log.info("%s: %d images%s", split, len(data[split]), more)
    _refuse_shared(root, data)
    return data


def classification_data(
    root: Path, *, keep_copies: bool = False, require_all: bool = False
) -> tuple[Data, dict[str, list[str]]]:
    """The images of each split with their labels, and by split the ids whose label is there but whose image is not.

    The training labels are those of `ISIC-2017_Training_Aug_Part3_GroundTruth.csv` (2,000 images and 1,320 more of the
    ISIC Archive) where it lies there. Images that are absent are left out, unless `require_all`. Test labels may be
    absent: the samples then have None.

    Raises UserError when labels are faulty (`read_labels`), absent or incomplete, name an image of another split, or
    when an image is in two splits.
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
            raise UserError(f"{root}: no {split} image; see python -m utils.inspect_data {root}")
        if split == "validation" and data[split]:
            _refuse_one_sided(path, data[split])
        copies = len(ids[split]) - len(data[split])
        more = f", {copies} copies of validation or test images left out" if copies else ""
        if gone := absent[split]:
            text = f"{len(gone)} of the {len(labelled)} labelled images are not there ({_some(gone)})"
            if require_all:
                raise UserError(f"{path}: {text}; fetch them or go on without --require-all")
            more += f", {text}"
        log.info("%s: %d images%s", split, len(data[split]), more)
    _refuse_shared(root, data)
    return data, absent


def _refuse_one_sided(path: Path, samples: list[Sample]) -> None:
    for label in range(2):
        positive = sum(sample.label == label for sample in samples)
        if positive in (0, len(samples)):
            which = "no" if positive == 0 else "nothing but"
            raise UserError(
                f"{path}: {which} images of {CLASSES[label]}, so there is no AUC to choose the best epoch by"
            )


def _refuse_shared(root: Path, data: Data) -> None:
    train = {sample.id for sample in data["train"]}
    twice = sorted(sample.id for split in ("validation", "test") for sample in data[split] if sample.id in train)
    if twice:
        raise UserError(f"{root}: {len(twice)} images are in training and in another split: {_some(twice)}; remove one")


def _some(ids: list[str]) -> str:
    return f"{', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}"
