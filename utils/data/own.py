"""A data folder of one's own: photographs in images/, and beside them masks/, or labels.csv, or both.

    mine/images/case 1.jpg          JPEG, PNG, TIFF, BMP or WebP
    mine/masks/case 1.png           of the same stem; "case 1_segmentation.png" is taken too
    mine/labels.csv                 image_id,label  or  image_id and a column of 0 and 1 for each class

These columns may have the other names in `IDS` and `LABELS`. Two more are optional. `group`: photographs of one group
(a lesion, a patient) are never split.
`split`: train, validation or test for every image, in place of a drawn split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils import UserError
from utils.config import Config
from utils.data.isic import CLASSES, SPLITS, Sample, lesions, read_rows
from utils.files import check_file, listed, quoted
from utils.logger import log

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MASK_ENDINGS = ("_segmentation", "_mask")
IDS, LABELS = ("image_id", "image", "id", "file", "filename"), ("label", "diagnosis", "dx", "class")
SHARES = (0.8, 0.1, 0.1)  # of training, validation and test


@dataclass(frozen=True)
class Folder:
    """What lies there by image id, the file's stem; labels are indices into `classes`."""

    root: Path
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    classes: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)  # the split of each image
    unread: Sequence[str] = ()  # columns of the table


def is_own(root: Path) -> bool:
    """Whether the folder is one of these, and not in the challenge's layout."""
    return (root / "images").is_dir() and ((root / "masks").is_dir() or (root / "labels.csv").is_file())


def read_folder(root: Path) -> Folder:
    """UserError that names a file or row at fault."""
    images, masks = files_by_id(root / "images"), files_by_id(root / "masks", masks=True)
    if not images:
        reason = f"{root / 'images'}: no photograph there ({', '.join(SUFFIXES)})"
        raise UserError("; ".join([reason, *_passed_over(root)]))
    if not (root / "labels.csv").is_file():
        return Folder(root, images, masks)
    return Folder(root, images, masks, *read_table(root / "labels.csv"))


def files_by_id(folder: Path, *, masks: bool = False) -> dict[str, Path]:
    """Every image file by its stem, of masks without "_segmentation". UserError when two have the same."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            ending = next((each for each in MASK_ENDINGS if masks and path.stem.endswith(each)), "")
            other = found.setdefault(path.stem.removesuffix(ending), path)
            if other is not path:
                raise UserError(f"{path}: {other.name} is of the same image; keep one of them")
    return found


def _passed_over(root: Path, images: Iterable[Path] = ()) -> Iterator[str]:
    """A line for what else lies in images/, if anything does: folders, files of other kinds."""
    if others := {path for path in (root / "images").iterdir() if not path.name.startswith(".")}.difference(images):
        names = [path.name + "/" * path.is_dir() for path in sorted(others, key=lambda path: (path.is_file(), path))]
        yield f"not read in images/: {listed(names, 6)}; move photographs in folders up, save others as JPEG or PNG"


def oddities(folder: Folder, *, masks: bool) -> Iterator[str]:
    """A line for each thing that segmentation (`masks`) or classification passes over, or may take for another."""
    what, known = ("mask", folder.masks) if masks else ("label", folder.labels)
    yield from _passed_over(folder.root, folder.images.values())
    if known and (without := sorted(folder.images.keys() - known)):
        yield f"{len(without)} images have no {what} and are left out: {listed(without)}"
    if alone := sorted(known.keys() - folder.images):
        yield f"{len(alone)} {what}s have no photograph in images/: {listed(alone)}"
    spellings = Counter(map(str.lower, folder.classes))
    if not masks and (alike := [name for name in folder.classes if spellings[name.lower()] > 1]):
        yield f"classes that differ only in case: {listed(alike, 6)}; write each in one way in labels.csv"


def as_id(cell: str) -> str:
    """The image id that a cell of a table means: a file's stem."""
    return Path(cell).stem if cell.lower().endswith(SUFFIXES) else cell


def read_table(path: Path) -> tuple[tuple[str, ...], dict[str, int], dict[str, str], dict[str, str], list[str]]:
    """Class names; by image id the label (index of the class), group, split, empty without a column; unread columns.

    The classes of a column of labels are sorted by name, those of columns of 0 and 1 stay in their order; ISIC 2017's
    three are always in that of `CLASSES`. UserError that names the file and row.
    """
    with check_file(path).open(encoding="utf-8-sig", errors="replace") as file:
        header = ("image_id", "label") if file.readline().startswith("ISIC_") else None  # ISIC 2016 has none
    labels, extra, column, names = {}, {"group": {}, "split": {}}, None, []
    for where, id_, row in read_rows(path, IDS, header, as_id):
        column = next((name for name in LABELS if name in row), None)
        names = [name for name in row if name and name not in (*IDS, *extra)]
        if not column and len(names) < 2:
            way = f"call the column of classes {LABELS[0]}, or add one of 0 and 1 for each other class"
            raise UserError(f"{path}: no column {' or '.join(LABELS)} in {quoted([*row])}; {way}")
        labels[id_] = row[column] if column else _one_of(row, names, where)
        if not id_ or not labels[id_]:
            raise UserError(f"{where}: {column if id_ else 'the id'} is empty; complete the row, or take it away")
        if row.get("split", "train") not in SPLITS:
            raise UserError(f"{where}: split is {quoted(repr(row['split']))}, expected {', '.join(SPLITS)}")
        for name in extra.keys() & row:
            extra[name][id_] = row[name]
    classes = tuple(sorted(set(labels.values()))) if column else tuple(names)
    classes = CLASSES if set(classes) == set(CLASSES) else classes
    if len(classes) < 2:
        raise UserError(f"{path}: {len(classes)} class in it, {quoted(classes)}; a classifier needs two or more")
    unread = [name for name in names if column and name != column]
    return classes, {id_: classes.index(label) for id_, label in labels.items()}, *extra.values(), unread


def _one_of(row: Mapping[str, str], names: Sequence[str], where: str) -> str:
    """The class whose column is 1."""
    values = {name: row[name] for name in names}
    ones = [name for name, value in values.items() if value in ("1", "1.0")]
    if len(ones) != 1 or any(value not in ("0", "0.0", "1", "1.0") for value in values.values()):
        expected = f"expected 1 in one of {', '.join(names)} and 0 in the others, got {quoted(values)}"
        raise UserError(f"{where}: {expected}; a column of class names is called {' or '.join(LABELS)}")
    return ones[0]


def named(config: Config) -> Config:
    """With the name and number of a run on a folder of one's own: mine-seg-1/run0, of a fold mine-seg-1-5fold/run2.

    With other data as it is. UserError for another number than the fold's.
    """
    if not is_own(config.data):
        return config
    name = f"{config.data.resolve().name}-{config.name}"
    if not config.fold:
        return replace(config, name=name)
    fold, folds = config.fold
    if config.id not in (0, fold):
        raise UserError(f"-i {config.id}: the run of --fold {fold}/{folds} is run{fold}, leave -i away")
    return replace(config, id=fold, name=f"{name}-{folds}fold")


def own_data(config: Config, *, masks: bool) -> tuple[Config, dict[str, Sequence[Sample]]] | None:
    """The images of each split that have a mask, or a label; and the config with what only the folder tells.

    That is its classes, the way it is split, and a name that begins with the folder's. None where `config.data` is
    no folder of one's own. UserError when there are no images, or a class is in too few groups to be in every split.
    """
    if not is_own(config.data):
        if config.split or config.fold:
            raise UserError(f"{config.data}: --split and --fold are for folders with images/ and masks/ or labels.csv")
        return None
    folder = read_folder(config.data)
    known = folder.masks if masks else folder.labels
    there = sorted(folder.images.keys() & known.keys())
    for line in oddities(folder, masks=masks):
        log.warning("%s: %s", config.data, line)
    if not there:
        what = "mask (masks/, of the same name)" if masks else "label (labels.csv)"
        raise UserError(f"{config.data}: no image with a {what}; see python -m utils.data.check {config.data}")
    splits, data = drawn_splits(folder, there, config), {split: [] for split in SPLITS}
    for id_ in there:
        facts = (table.get(id_) for table in (folder.masks, folder.labels, folder.groups))
        data[splits[id_]].append(Sample(id_, folder.images[id_], *facts))
    log.info("%s: %s", config.data, ", ".join(f"{split} {len(samples)} images" for split, samples in data.items()))
    if empty := [split for split in ("train", "validation") if not data[split]]:
        raise UserError(f"{config.data}: no {empty[0]} image; choose other shares by --split")
    config = named(config)
    if not config.fold:
        config = replace(config, split="given" if folder.given else config.split or SHARES)
    return (config if masks else _with_classes(config, folder, data)), data


def _with_classes(config: Config, folder: Folder, data: Mapping[str, Sequence[Sample]]) -> Config:
    for label, name in enumerate(folder.classes):
        for split in ("train", "validation"):
            if not any(sample.label == label for sample in data[split]):
                raise UserError(
                    f"{folder.root}: no {split} image of {name}, too few for this split: choose --split or --fold, "
                    "or take the class out of labels.csv"
                )
    return replace(config, classes=folder.classes)


def drawn_splits(folder: Folder, ids: Sequence[str], config: Config) -> dict[str, str]:
    """The split of each image: given in labels.csv, of a fold, or drawn by shares.

    Whole groups, and known copies together, are drawn, class by class (a group's is that of its first image), in an
    order that depends on `split_seed` and their names alone: images that are added later move few others. Fold K of N
    tests on the Kth part, validates on the next, and trains on the others.
    """
    if folder.given and not config.fold:
        if unknown := [id_ for id_ in ids if id_ not in folder.given]:
            raise UserError(f"{folder.root / 'labels.csv'}: no split is given for {listed(unknown)}; add their rows")
        return {id_: folder.given[id_] for id_ in ids}
    groups = defaultdict(list)
    for id_, lesion in zip(ids, lesions(ids, folder.groups), strict=True):
        groups[lesion].append(id_)
    by_class = defaultdict(list)
    for group, members in groups.items():
        by_class[folder.labels.get(members[0])].append(group)
    splits, dealt = {}, 0
    for _, names in sorted(by_class.items(), key=lambda item: str(item[0])):
        names.sort(key=lambda name: hashlib.sha256(f"{config.split_seed} {name}".encode()).digest())
        for place, name in enumerate(names):
            if config.fold:
                fold, folds = config.fold
                split = {fold - 1: "test", fold % folds: "validation"}.get((dealt + place) % folds, "train")
            else:
                split = _of_shares(place, len(names), config.split or SHARES)
            splits |= dict.fromkeys(groups[name], split)
        dealt += len(names)  # the next class goes on with the next part, so that parts are equally large
    return splits


def _of_shares(place: int, count: int, shares: Sequence[float]) -> str:
    """Of the groups of a class in order: the first test, the next validate. Of three or more at least one does each."""
    test, validation = (
        max(1, round(share / sum(shares) * count)) if share and count > least else 0
        for share, least in ((shares[2], 2), (shares[1], 1))
    )
    return "test" if place < test else "validation" if place < test + validation else "train"
