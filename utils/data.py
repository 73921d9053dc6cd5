"""Reading ISIC 2017 from disk: which files belong together, and each of them as an array.

Known are the official folder names and those of the project before this one (`Aug_Training_Data`,
`ISIC-2017_Test_Data`); folders nested under their own name are read too. Images and masks are paired by id.
Pillow decodes (it refuses truncated files, OpenCV reads them as if they were whole), OpenCV resizes.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils import UserError

SPLITS = ("train", "validation", "test")
CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")

# The same photograph in two splits: (split, id, split, id). The first six are widely known. The others were found by
# content (`utils.inspect_data`, and a search for shared keypoints) and each was looked at: one lesion, in most pairs
# with other colours, contrast and frame, in some turned around.
KNOWN_COPIES = (
    ("train", "ISIC_0012271", "test", "ISIC_0016018"),
    ("train", "ISIC_0012175", "test", "ISIC_0015982"),
    ("train", "ISIC_0012887", "test", "ISIC_0012989"),
    ("train", "ISIC_0013163", "test", "ISIC_0013109"),
    ("train", "ISIC_0012970", "validation", "ISIC_0012127"),
    ("validation", "ISIC_0012221", "test", "ISIC_0016002"),
    ("validation", "ISIC_0012222", "test", "ISIC_0016003"),
    ("train", "ISIC_0000157", "validation", "ISIC_0014946"),
    ("train", "ISIC_0000171", "validation", "ISIC_0015124"),
    ("train", "ISIC_0000215", "validation", "ISIC_0015313"),
    *(
        ("train", f"ISIC_0000{train}", "test", f"ISIC_00{test}")
        for train, test in (
            (160, 14963), (162, 14826), (169, 15132), (174, 15071), (179, 14765), (182, 15395), (184, 15310),
            (185, 15155), (186, 14698), (189, 15161), (191, 14907), (193, 15436), (196, 14957), (201, 15023),
            (209, 15016), (212, 14927), (213, 15201), (217, 14973), (218, 15241), (220, 15202), (226, 14949),
            (227, 15034), (231, 15146),
        )
    ),
)  # fmt: skip
LEFT_OUT = frozenset(copy[1] for copy in KNOWN_COPIES if copy[0] == "train")

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
}
_ID = re.compile(r"ISIC_\d+")
_IMAGE = re.compile(r"(ISIC_\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d+)_segmentation\.png", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One photograph and what is known about it; `label` is an index into CLASSES."""

    id: str
    image: Path
    mask: Path | None
    label: int | None


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
    """Every image, mask, label and metadata file of `split`; of an id in two folders, the one first in _NAMES wins.

    The metadata file lies in `root`, or in an image folder as the official archives have it.

    Raises UserError when `root` is no folder or `split` is none of SPLITS.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if not Path(root).is_dir():
        raise UserError(
            f"{root}: no such folder; put the challenge's data there (Data/README.md), "
            "or draw the embedded sample (python -m utils.sample) and take --data Data/sample"
        )
    here = _entries(Path(root))
    images, masks, labels = _NAMES[split]
    image_folders = list(_folders(here, images))
    return SplitFiles(
        images=_by_id(image_folders, _IMAGE),
        masks=_by_id(_folders(here, masks), _MASK),
        labels=_first([here], labels),
        metadata=_first([here, *image_folders], [f"{name}_metadata.csv" for name in images]),
    )


def read_split(
    root: str | Path, split: str, *, leave_out_copies: bool = True, with_labels: bool = True
) -> list[Sample]:
    """Every image of `split` ("train", "validation" or "test"), sorted by id, with what truth lies beside it.

    Empty when the split's folder is absent. From "train", the known copies of validation and test images are
    left out unless `leave_out_copies` is False. With `with_labels` False the label file is not opened, so that
    a fault in it does not keep segmentation from starting. Images and masks are paired by name, not opened.

    Raises UserError when `root` is no folder or the label file is faulty (see `read_labels`).
    """
    files = find_files(root, split)
    labels = read_labels(files.labels) if with_labels and files.labels else {}
    left_out = LEFT_OUT if split == "train" and leave_out_copies else frozenset()
    return [
        Sample(id_, files.images[id_], files.masks.get(id_), labels.get(id_))
        for id_ in sorted(files.images.keys() - left_out)
    ]


def read_labels(csv_path: str | Path) -> dict[str, int]:
    """Index into CLASSES by image id, from an official `Part3_GroundTruth.csv`.

    Columns image_id, melanoma, seborrheic_keratosis in any order, 0/1 or 0.0/1.0; both 0 means nevus.
    Raises UserError naming file and row: missing column, no ISIC id, value not 0 or 1, both 1, id twice.
    """
    labels = {}
    for where, id_, row in _rows(csv_path, CLASSES[:2]):
        values = [_zero_or_one(row[name], where, name) for name in CLASSES[:2]]
        if all(values):
            raise UserError(f"{where}: both {' and '.join(CLASSES[:2])} are 1, expected one at most")
        labels[id_] = values.index(True) if any(values) else CLASSES.index("nevus")
    return labels


def read_metadata(root: str | Path, split: str) -> dict[str, Metadata]:
    """Age and sex by image id, from the `…_metadata.csv` of `split`; empty where there is none.

    Columns image_id, age_approximate, sex in any order; "unknown" or nothing where it is not recorded.
    Raises UserError as `find_files` does, and naming file and row: missing column, no ISIC id, id twice, age that is
    no number of years (0 to 199), other sex than female or male.
    """
    path, found = find_files(root, split).metadata, {}
    for where, id_, row in _rows(path, ("age_approximate", "sex")) if path else ():
        age = _recorded(row, "age_approximate", r"1?[0-9]?[0-9](\.[0-9]*)?", where, "years")
        found[id_] = Metadata(age and float(age), _recorded(row, "sex", "female|male", where, "female, male"))
    return found


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The photograph as uint8 [H, W, 3], RGB, 0 to 255, upright by its EXIF orientation.

    `size` = (width, height) is reached exactly and keeps the whole frame (the aspect ratio is squashed): area
    averaging when shrinking, else linear. JPEGs are then decoded at 1/2, 1/4 or 1/8 where that leaves at least
    twice the wanted size. Grey, palette and CMYK become RGB, transparency is dropped, 16-bit values lose their
    low byte. Raises UserError when the file is absent, truncated or no JPEG or PNG.
    """
    with _opened(path, size) as image:
        if image.mode.startswith("I"):
            array = np.repeat(_high_byte(np.asarray(image))[:, :, None], 3, axis=2)
        else:
            # By way of RGBA, because Pillow warns about palettes with transparency.
            array = np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    if size is None or array.shape[1::-1] == tuple(size):
        return array
    shrinks = size[0] <= array.shape[1] and size[1] <= array.shape[0]
    return cv2.resize(array, tuple(size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The lesion mask as uint8 [H, W] of 0 and 1: 1 where the stored value is above 128 (challenge rule).

    A mask that holds no value but 0 and 1 counts 1 as lesion (some mirrors). Resized to `size` = (width,
    height) by the nearest pixel centre. Raises UserError as `read_image` does.
    """
    grey = read_grey(path)
    mask = (grey > (0 if grey.max() <= 1 else 128)).astype(np.uint8)
    # Not INTER_NEAREST, which shifts the mask by up to half a pixel against the image.
    return mask if size is None else cv2.resize(mask, tuple(size), interpolation=cv2.INTER_NEAREST_EXACT)


def read_grey(path: str | Path) -> np.ndarray:
    """A mask's values as stored, uint8 [H, W]; colour becomes grey. Raises UserError as `read_image` does."""
    with _opened(path) as image:
        return _high_byte(np.asarray(image)) if image.mode.startswith("I") else np.array(image.convert("L"))


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header alone, upright. Raises UserError when the header cannot be read."""
    with _opened(path, decode=False) as image:
        return image.size[::-1] if _lies_on_its_side(image) else image.size


def _entries(folder: Path) -> dict[str, Path]:
    try:
        return {path.name.lower(): path for path in sorted(folder.iterdir())}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _folders(here: dict[str, Path], names: tuple[str, ...]) -> Iterator[dict[str, Path]]:
    """The entries of each folder of these names, and of those nested in it: some mirrors have X/X/…"""
    for name in names:
        folder = here.get(name.lower())
        while folder is not None and folder.is_dir():
            inside = _entries(folder)
            yield inside
            folder = inside.get(name.lower())


def _by_id(folders: Iterable[dict[str, Path]], pattern: re.Pattern) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for inside in folders:
        for path in inside.values():
            if match := pattern.fullmatch(path.name):
                found.setdefault(match[1].upper(), path)
    return found


def _first(folders: Iterable[dict[str, Path]], names: Iterable[str]) -> Path | None:
    return next((folder[name.lower()] for folder in folders for name in names if name.lower() in folder), None)


def _rows(csv_path: str | Path, columns: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, str | None]]]:
    """Where it is (for messages), image_id and cells of every row; UserError for what no table of ours may have."""
    csv_path, seen = Path(csv_path), set()
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if missing := {"image_id", *columns} - set(reader.fieldnames):
                raise UserError(f"{csv_path}: no column {', '.join(sorted(missing))} in {reader.fieldnames}")
            for row in reader:
                where = f"{csv_path}: row {reader.line_num}"
                id_ = (row["image_id"] or "").strip().upper()
                if not _ID.fullmatch(id_):
                    raise UserError(f"{where}: image_id is {row['image_id']!r}, expected one like ISIC_0000000")
                if id_ in seen:
                    raise UserError(f"{where}: {id_} is there a second time; keep one row an image")
                seen.add(id_)
                yield f"{where}, {id_}", id_, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{csv_path}: not readable as a comma-separated text file ({error})") from error


def _zero_or_one(text: str | None, where: str, column: str) -> bool:
    try:
        value = float(text or "")
    except ValueError:
        value = None
    if value not in (0, 1):
        raise UserError(f"{where}: {column} is {text!r}, expected 0 or 1")
    return value == 1


def _recorded(row: dict[str, str | None], column: str, pattern: str, where: str, expected: str) -> str | None:
    """The cell in lower case; None where it says that nothing is recorded. UserError where it is not like `pattern`."""
    text = row[column]
    value = (text or "").strip().lower()
    if text is not None and value in ("", "unknown"):  # None: the row ends before this cell
        return None
    if not re.fullmatch(pattern, value):
        raise UserError(f"{where}: {column} is {text!r}, expected {expected} or unknown")
    return value


@contextmanager
def _opened(path: str | Path, size: tuple[int, int] | None = None, decode: bool = True) -> Iterator[Image.Image]:
    """The file as a Pillow image, decoded and upright; what Pillow cannot read becomes a UserError."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if decode and image.format == "PNG":
                _verify_png(path)
            if decode:
                if size is not None:
                    wanted = size[::-1] if _lies_on_its_side(image) else size
                    image.draft(None, (2 * wanted[0], 2 * wanted[1]))  # does nothing but to a JPEG
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: too many pixels ({error}); shrink it or take it away") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: truncated or not an image ({error}); fetch this file again") from error


def _verify_png(path: str | Path) -> None:
    """Raises what Pillow raises for a damaged chunk or a missing end, which plain decoding of a PNG overlooks."""
    with Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _lies_on_its_side(image: Image.Image) -> bool:
    return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # 0x0112: EXIF orientation


def _high_byte(values: np.ndarray) -> np.ndarray:
    """16-bit grey, which Pillow gives as "I;16" or "I", to uint8; a mask of 0 and 1 stays one."""
    return (values if values.max() <= 1 else np.clip(values, 0, 65535) >> 8).astype(np.uint8)
