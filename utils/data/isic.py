"""Reading ISIC 2017 from disk: which files belong together, and what the tables say of each image.

Known are the official folder names and those of the project before this one (`Aug_Training_Data`,
`ISIC-2017_Test_Data`); folders nested under their own name are read too. Images and masks are paired by id.

Nothing here is trusted: what a file holds is read right or refused by a UserError, whatever it is (`docs/faults.md`).
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import UserError
from utils.files import check_file, listed, quoted

SPLITS = ("train", "validation", "test")
CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")

_FACTS = json.loads(Path(__file__).with_name("isic2017.json").read_text(encoding="utf-8"))
OFFICIAL = {split: frozenset(ids) for split, ids in _FACTS["official"].items()}  # ids of the validation and test images
LAST_ID = max(int(id_.removeprefix("ISIC_")) for id_ in OFFICIAL["test"])  # of ISIC 2017
HAM10000 = range(24306, 34321)  # ids of HAM10000, which is ISIC 2018's task 3: none of them is of ISIC 2017
# The same photograph in two splits: (split, id, split, id). The first six are widely known. The others were found by
# content (`utils.data.check`, and a search for shared keypoints) and each was looked at: one lesion, in most pairs
# with other colours, contrast and frame, in some turned around.
KNOWN_COPIES = tuple(tuple(copy) for copy in _FACTS["copies"])
COPY_OF = {copy[-1]: copy[1] for copy in (*KNOWN_COPIES, *_FACTS["copies_within"])}  # the latter: (split, id, id)
LEFT_OUT = frozenset(copy[1] for copy in KNOWN_COPIES if copy[0] == "train")  # of training

# split: (image folders, mask folders, label files), each in order of preference.
_NAMES = {
    "train": (
        ("Aug_Training_Data", "ISIC-2017_Training_Data"),
        ("ISIC-2017_Training_Part1_GroundTruth",),
        ("ISIC-2017_Training_Aug_Part3_GroundTruth.csv", "ISIC-2017_Training_Part3_GroundTruth.csv"),
    ),
    "validation": (
        ("ISIC-2017_Validation_Data",),
        ("ISIC-2017_Validation_Part1_GroundTruth",),
        ("ISIC-2017_Validation_Part3_GroundTruth.csv",),
    ),
    "test": (
        ("ISIC-2017_Test_Data", "ISIC-2017_Test_v2_Data"),
        ("ISIC-2017_Test_v2_Part1_GroundTruth", "ISIC-2017_Test_Part1_GroundTruth"),
        ("ISIC-2017_Test_v2_Part3_GroundTruth.csv", "ISIC-2017_Test_Part3_GroundTruth.csv"),
    ),
    "extra": (  # other data sets (`utils.data.extra`): HAM10000, ISIC 2018 tasks 1 and 3, ISIC 2016
        (
            "HAM10000_images", "HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Training_Input",
            "ISIC2018_Task1-2_Training_Input", "ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part3_Training_Data",
        ),
        (
            "HAM10000_segmentations_lesion_tschandl", "ISIC2018_Task1_Training_GroundTruth",
            "ISBI2016_ISIC_Part1_Training_GroundTruth",
        ),
        (
            "HAM10000_metadata.csv", "HAM10000_metadata", "ISIC2018_Task3_Training_GroundTruth.csv",
            "ISBI2016_ISIC_Part3_Training_GroundTruth.csv",
        ),
    ),
}  # fmt: skip
PREFIXES = {split: _NAMES[split][1][0].removesuffix("_Part1_GroundTruth") for split in SPLITS}  # official
SYNTHETIC = ("synthetic.json", "sample.json")  # mark a folder of synthetic data; the second is of earlier versions
_ID = re.compile(r"ISIC_[0-9]+")
_IMAGE = re.compile(r"(ISIC_[0-9]+)\.(?:jpe?g|png)", re.IGNORECASE | re.ASCII)
_MASK = re.compile(r"(ISIC_[0-9]+)(?:_segmentation)?\.png", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Sample:
    """One photograph and what is known about it; `label` is an index into CLASSES, `group` of `utils.data.own`."""

    id: str
    image: Path
    mask: Path | None
    label: int | None
    group: str | None = None


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split by id, paired or not."""

    images: dict[str, Path]
    masks: dict[str, Path]
    labels: Path | None
    metadata: Path | None


@dataclass(frozen=True)
class Metadata:
    """What the challenge tells about the patient of one image: approximate age in years, "female" or "male"."""

    age: float | None = None
    sex: str | None = None


def find_files(root: str | Path, split: str) -> SplitFiles:
    """Every image, mask, label and metadata file of `split`, or "extra"; of an id in two folders, the first one wins.

    The metadata lie in `root`, or in an image folder as the official archives have them.
    UserError when `root` is no folder, or a folder has two files for one id.
    """
    if not Path(root).is_dir():
        raise UserError(
            f"{root}: no such folder; put the challenge's data there (Data/README.md), "
            "or draw synthetic data (python -m utils.data.synthetic) and take --data Data/synthetic"
        )
    root, (images, masks, labels) = Path(root), _NAMES[split]
    image_folders = list(_folders(root, images))
    return SplitFiles(
        images=_by_id(image_folders, _IMAGE),
        masks=_by_id(_folders(root, masks), _MASK),
        labels=_first([root, *_folders(root, [Path(name).stem for name in labels])], labels),
        metadata=_first([root, *image_folders], [f"{name}_metadata.csv" for name in images]),
    )


def layout_hint(root: str | Path, split: str) -> str:
    """What lies in `root` in place of a split's images and masks, and what is expected; the end of a message."""
    there, official = sorted(Path(root).iterdir()), PREFIXES[split]
    for path in there:
        if (path / f"{official}_Data").is_dir() and (path / f"{official}_Part1_GroundTruth").is_dir():
            return f"{path}/ has them: --data {path}"
    names = listed([path.name + "/" * path.is_dir() for path in there], 8) or "nothing"
    expected = f"{official}_Data/ISIC_0000000.jpg and {official}_Part1_GroundTruth/ISIC_0000000_segmentation.png"
    return f"{root} holds {names}; expected {expected} (Data/README.md), or images/ and masks/"


def read_split(
    root: str | Path, split: str, *, leave_out_copies: bool = True, with_labels: bool = True
) -> list[Sample]:
    """Every image of `split` ("train", "validation" or "test"), sorted by id, with what truth lies beside it.

    Empty when the split's folder is absent. From "train", the known copies of validation and test images are left out
    unless `leave_out_copies` is False. Without `with_labels` the label file is not opened: a fault in it does not keep
    segmentation from starting. Images and masks are paired by name, not opened. UserError as of `read_labels`.
    """
    files = find_files(root, split)
    labels = read_labels(files.labels) if with_labels and files.labels else {}
    left_out = LEFT_OUT if split == "train" and leave_out_copies else frozenset()
    return [
        Sample(id_, files.images[id_], files.masks.get(id_), labels.get(id_))
        for id_ in sorted(files.images.keys() - left_out)
    ]


def lesions(ids: Iterable[str], groups: Mapping[str, str | None] | None = None) -> list[str]:
    """What each image shows: its group (by id), without one the same id for both of two known copies, else its own."""
    return [(groups or {}).get(id_) or COPY_OF.get(id_, id_) for id_ in ids]


def read_labels(csv_path: str | Path) -> dict[str, int]:
    """Index into CLASSES by image id, from an official `Part3_GroundTruth.csv`.

    Columns image_id, melanoma, seborrheic_keratosis in any order, 0/1 or 0.0/1.0; both 0 means nevus. UserError that
    names file and row: missing column, no ISIC id, value not 0 or 1, both 1, id twice, more cells than columns.
    """
    labels = {}
    for where, id_, row in _official_rows(csv_path, CLASSES[:2]):
        values = [_cell(row, name, r"[01](\.0*)?", where, "0 or 1").startswith("1") for name in CLASSES[:2]]
        if all(values):
            raise UserError(f"{where}: both {' and '.join(CLASSES[:2])} are 1, expected one at most")
        labels[id_] = values.index(True) if any(values) else CLASSES.index("nevus")
    return labels


def read_metadata(root: str | Path, split: str) -> dict[str, Metadata]:
    """Age and sex by image id, from the `…_metadata.csv` of `split`; empty where there is none.

    Columns image_id, age_approximate, sex in any order; "unknown" or nothing where it is not recorded. UserError as of
    `read_labels`, for an age that is no number of years (0 to 199), and for another sex than female or male.
    """
    path, found = find_files(root, split).metadata, {}
    for where, id_, row in _official_rows(path, ("age_approximate", "sex")) if path else ():
        age = _cell(row, "age_approximate", r"(unknown|1?[0-9]?[0-9](\.[0-9]*)?)?", where, "years or unknown")
        sex = _cell(row, "sex", "(unknown|female|male)?", where, "female, male or unknown")
        found[id_] = Metadata(float(age) if age[:1].isdigit() else None, sex if sex in ("female", "male") else None)
    return found


def separator(line: str) -> str:
    """Of the cells of a table, by its first line: a comma; a semicolon or tab where there are these and no comma."""
    return next((each for each in ",;\t" if each in line), ",")


def read_rows(
    path: Path, ids: Sequence[str], header: Sequence[str] | None = None, as_id: Callable[[str], str] = str.upper
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Place (for messages), image id, and cells by column, without the spaces around them, of each row of a table.

    ids: how the column of ids may be called; header: the columns' names where the file has none. UserError for
    what is no such table, more cells than columns, a column or an id twice.
    """
    seen = set()
    try:
        with check_file(path).open(encoding="utf-8-sig", newline="") as file:
            between = separator(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, header, restval="", delimiter=between)
            names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            key = next((name for name in ids if name in names), None)
            if key is None:
                raise UserError(f"{path}: no column {' or '.join(ids)} in {quoted(names)}")
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise UserError(f"{path}: column {twice[0]} is there a second time; keep one of them")
            for row in reader:
                id_ = as_id(row[key].strip())
                where = f"{path}: row {reader.line_num}, {quoted(id_)}"
                if id_ in seen:
                    raise UserError(f"{where}: is there a second time; keep one row an image")
                if any(cell.strip() for cell in row.pop(None, ())):
                    raise UserError(f"{where}: more cells than columns; take the commas away")
                seen.add(id_)
                yield where, id_, {name: cell.strip() for name, cell in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as a comma-separated text file ({error})") from error


def _entries(folder: Path) -> dict[str, Path]:
    """By name in lower case; of two names that differ in nothing else, the official one (capitals come first)."""
    return {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True)}


def _folders(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Each folder of these names, and one nested in it under its own name, as some mirrors have it."""
    for name in map(str.lower, names):
        folder = root
        for _ in range(2):
            inside = _entries(folder)
            if name in inside and inside[name].is_dir():
                folder = inside[name]
                yield folder


def _by_id(folders: Iterable[Path], pattern: re.Pattern) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        here: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if match := pattern.fullmatch(path.name):
                id_ = match[1].upper()
                if id_ in here:
                    raise UserError(f"{path}: {here[id_].name} has the same id; keep one of them")
                here[id_] = path
        found = here | found  # the first folder wins
    return found


def _first(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    inside = map(_entries, folders)
    return next((paths[name.lower()] for paths in inside for name in names if name.lower() in paths), None)


def _official_rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    for where, id_, row in read_rows(Path(path), ("image_id",)):
        if missing := set(columns) - row.keys():
            raise UserError(f"{path}: no column {', '.join(sorted(missing))} in {quoted([*row])}")
        if not _ID.fullmatch(id_):
            raise UserError(f"{where}: image_id is {quoted(repr(row['image_id']))}, expected one like ISIC_0000000")
        yield where, id_, row


def _cell(row: Mapping[str, str], column: str, pattern: str, where: str, expected: str) -> str:
    """A cell in lower case. UserError where it is not like `pattern`."""
    if not re.fullmatch(pattern, row[column].lower()):
        raise UserError(f"{where}: {column} is {quoted(repr(row[column]))}, expected {expected}")
    return row[column].lower()
