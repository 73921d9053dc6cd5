"""Reading ISIC 2017 from disk: which files belong together, and each of them as an array.

Known are the official folder names and those of the project before this one (`Aug_Training_Data`,
`ISIC-2017_Test_Data`); folders nested under their own name are read too. Images and masks are paired by id.
Pillow decodes (it refuses truncated files, OpenCV reads them as if they were whole), OpenCV resizes.
"""

import csv
import re
from collections.abc import Iterator
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


@dataclass(frozen=True)
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


def find_files(root: str | Path, split: str) -> SplitFiles:
    """Every image, mask and label file of `split`; of an id in two folders, the one first in _NAMES wins.

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
    csv_paths = (here.get(name.lower()) for name in labels)
    return SplitFiles(
        images=_by_id(here, images, _IMAGE),
        masks=_by_id(here, masks, _MASK),
        labels=next((path for path in csv_paths if path is not None), None),
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
    csv_path, labels = Path(csv_path), {}
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = {"image_id", *CLASSES[:2]} - set(reader.fieldnames)
            if missing:
                raise UserError(f"{csv_path}: no column {', '.join(sorted(missing))} in {reader.fieldnames}")
            for row in reader:
                where = f"{csv_path}: row {reader.line_num}"
                id_ = (row["image_id"] or "").strip().upper()
                if not _ID.fullmatch(id_):
                    raise UserError(f"{where}: image_id is {row['image_id']!r}, expected one like ISIC_0000000")
                values = [_zero_or_one(row[name], where, id_, name) for name in CLASSES[:2]]
                if all(values):
                    raise UserError(f"{where}, {id_}: both {' and '.join(CLASSES[:2])} are 1, expected one at most")
                if id_ in labels:
                    raise UserError(f"{where}: {id_} is there a second time; keep one row an image")
                labels[id_] = values.index(True) if any(values) else CLASSES.index("nevus")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{csv_path}: not readable as a comma-separated text file ({error})") from error
    return labels


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


def _by_id(here: dict[str, Path], names: tuple[str, ...], pattern: re.Pattern) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in names:
        folder = here.get(name.lower())
        while folder is not None and folder.is_dir():
            inside = _entries(folder)
            for path in inside.values():
                if match := pattern.fullmatch(path.name):
                    found.setdefault(match[1].upper(), path)
            folder = inside.get(name.lower())  # X/X/…: some mirrors nest a second folder of the same name
    return found


def _zero_or_one(text: str | None, where: str, id_: str, column: str) -> bool:
    try:
        value = float(text or "")
    except ValueError:
        value = None
    if value not in (0, 1):
        raise UserError(f"{where}, {id_}: {column} is {text!r}, expected 0 or 1")
    return value == 1


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
