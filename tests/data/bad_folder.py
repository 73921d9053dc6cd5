"""A small good data folder, what can be done to it, and what it is then given to; for the tests of bad inputs."""

import atexit
import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import UserError
from utils.config import configure
from utils.data import check
from utils.data.cache import prepare
from utils.data.copies import copies_between
from utils.data.images import read_image, read_mask
from utils.data.isic import read_split
from utils.data.splits import refuse_copies
from utils.data.synthetic import make_synthetic
from utils.logger import log
from utils.tasks import TASKS

HEADER = "image_id,melanoma,seborrheic_keratosis\n"
WIDTH, HEIGHT = 96, 72
FIRST = {"train": 9000000, "validation": 9100000, "test": 9200000}
NAMES = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


@cache
def good_folder() -> Path:
    """8 training, 8 validation and 3 test images of 96×72, with masks and labels; never changed."""
    folder = Path(tempfile.mkdtemp(prefix="bad_inputs_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_synthetic(folder / "data", {"train": 8, "validation": 8, "test": 3}, (WIDTH, HEIGHT), seed=3)


@cache
def original() -> np.ndarray:
    """Image 0 of the good folder."""
    return pixels(image(good_folder()))


def images(root: Path, split: str = "train") -> Path:
    return root / f"ISIC-2017_{NAMES[split]}_Data"


def image(root: Path, split: str = "train", index: int = 0) -> Path:
    return images(root, split) / f"ISIC_{FIRST[split] + index}.jpg"


def mask(root: Path, split: str = "train", index: int = 0) -> Path:
    name = f"ISIC_{FIRST[split] + index}_segmentation.png"
    return root / f"ISIC-2017_{NAMES[split]}_Part1_GroundTruth" / name


def labels(root: Path, split: str = "train") -> Path:
    return root / f"ISIC-2017_{NAMES[split]}_Part3_GroundTruth.csv"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def save(path: Path, array: np.ndarray | Image.Image, kind: str | None = None, **options: Any) -> None:
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(path, kind or ("PNG" if path.suffix == ".png" else "JPEG"), **options)


def as_png(path: Path, array: np.ndarray | None = None) -> Path:
    """The JPEG replaced by a PNG of the same id."""
    other = path.with_suffix(".png")
    save(other, pixels(path) if array is None else array)
    path.unlink()
    return other


def cut(path: Path, share: float = 0.5, last: int = 0) -> None:
    """The first `share` of a file, or all but its `last` bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-last] if last else content[: int(len(content) * share)])


def lesion(value: Any = 255, background: Any = 0, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    array = np.full(shape, background, np.uint8)
    array[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = value
    return array


def photograph(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) // 2 + 90


def bring(root: Path, what: np.ndarray | bytes, id_: str, split: str = "train") -> None:
    """One image more, with mask and label: a photograph as an array, or a file as bytes."""
    path = images(root, split) / f"{id_}.jpg"
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        save(path, what, quality=80)
    shutil.copy(mask(root, split), mask(root, split).with_name(f"{id_}_segmentation.png"))
    add_row(labels(root, split), f"{id_},0,0")


def add_row(path: Path, text: str) -> None:
    path.write_text(f"{path.read_text()}{text}\n")


def row(path: Path, number: int, text: str) -> None:
    """Row `number` (the header is row 1) replaced."""
    rows = path.read_text().splitlines()
    rows[number - 1] = text
    path.write_text("\n".join(rows) + "\n")


def replace(path: Path, how: Callable[[Path], Any]) -> None:
    path.unlink()
    how(path)


class Read(NamedTuple):
    """A training image as it was read; `pixels` int."""

    id: str
    pixels: np.ndarray
    mask: np.ndarray | None
    label: int | None


def read(root: Path) -> list[Read]:
    samples = read_split(root, "train")
    return [Read(s.id, read_image(s.image).astype(int), s.mask and read_mask(s.mask), s.label) for s in samples]


def prepared(root: Path) -> list[Read]:
    cache = prepare(read_split(root, "train", with_labels=False), (WIDTH, HEIGHT), root.parent / "cache")
    pairs = zip(cache.samples, map(cache.frame, range(len(cache.samples))), strict=True)
    return [Read(sample.id, row[..., :3].astype(int), row[..., 3], None) for sample, row in pairs]


def begin(experiment: str, root: Path, **changes: Any) -> None:
    """As far as the data can stop it: what `utils.tasks.train` does before it builds a network."""
    folders = {"data": root, "cache": root.parent / "cache", "output": root.parent / "model"}
    config = configure(experiment, pretrained=False, size=(64, 64), **folders, **changes)
    data = TASKS[config.task](config).read_data()
    caches = TASKS[config.task](config).prepare(data)
    refuse_copies(copies_between(caches), data, keep_copies=config.keep_copies)


def inspect(root: Path) -> None:
    """What is printed is logged; exit code 1 becomes a refusal by the line that says why."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = check.main([str(root)])
    lines = output.getvalue().splitlines()
    for line in lines:
        log.info("%s", line)
    if code:
        raise UserError(lines[-1])


def begins(result: None) -> bool:
    """Whether training or the check had nothing against it."""
    return result is None


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "read": read,
    "prepare": prepared,
    "seg": lambda root: begin("seg-4", root),
    "keep": lambda root: begin("seg-4", root, keep_copies=True),
    "cls": lambda root: begin("cls-2-4", root),
    "inspect": inspect,
}


class Case(NamedTuple):
    """One fault: what is wrong, what does it to a copy of the good folder, what happens then, and in which ENTRIES.

    `expected`: a pattern of the one line that refuses it (`…` stands for anything) or, with `warns`, of a line of the
    log; or a function that tells whether the training images (a list of Read) are right.
    """

    what: str
    damage: Callable[[Path], Any]
    expected: str | Callable[[Any], Any]
    entries: str
    warns: bool = False


def each(*cases: Case) -> Any:
    """A test's `case` and `entry`."""
    rows = [pytest.param(case, entry, id=f"{entry}: {case.what}") for case in cases for entry in case.entries.split()]
    assert len({row.id for row in rows}) == len(rows)
    return pytest.mark.parametrize("case,entry", rows)


def check_case(case: Case, entry: str, root: Path, lines: list[str]) -> None:
    case.damage(root)
    enter, cache_folder = ENTRIES[entry], root.parent / "cache"
    if callable(case.expected):
        assert case.expected(enter(root)), lines
        return
    pattern = ".*".join(map(re.escape, case.expected.split("…")))
    if case.warns:
        enter(root)
        assert any(re.search(pattern, line) for line in lines), lines
        return
    with pytest.raises(UserError) as caught:
        enter(root)
    message = str(caught.value)
    assert re.search(pattern, message) and "\n" not in message and len(message) < 1500, message
    caches = list(cache_folder.glob("*.npy"))  # of the splits without a fault
    assert not list(cache_folder.glob("*.partial")) and not (entry == "prepare" and caches)
    assert all(part.any() for path in caches for part in np.array_split(np.load(path), 32))
    assert not (root.parent / "model").exists()
