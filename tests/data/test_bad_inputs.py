"""Bad inputs: each is read rightly, refused with one line that names the file, or warned about; never a traceback.

CASES is the table, and docs/faults.md is written from it: `python -m tests.scripts.test_faults --write`.
"""

import atexit
import contextlib
import io
import logging
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

import cls_main
import nets
import seg_main
from tests.conftest import ROOT
from utils import UserError
from utils.data import check as inspect_data
from utils.data.cache import ImageCache, prepare
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import read_labels, read_metadata, read_split
from utils.data.synthetic import make_synthetic
from utils.logger import log
from utils.model.weights import load_file, load_pretrained, read_state_dict

HEADER = "image_id,melanoma,seborrheic_keratosis\n"
WIDTH, HEIGHT = 96, 72
COUNTS = {"train": 8, "validation": 8, "test": 3}
FIRST = {"train": 9000000, "validation": 9100000, "test": 9200000}
NAMES = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


# --- the small good folder and what is done to it


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


def cut(path: Path, share: float = 0.5, last: int = 0) -> None:
    """The first `share` of a file, or all but its `last` bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-last] if last else content[: int(len(content) * share)])


def as_png(path: Path, array: np.ndarray | None = None) -> Path:
    """The JPEG replaced by a PNG of the same id."""
    other = path.with_suffix(".png")
    save(other, pixels(path) if array is None else array)
    path.unlink()
    return other


def flip_bit(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)


def resize_header(path: Path, width: int, height: int) -> None:
    """A JPEG whose header tells another size."""
    content = path.read_bytes()
    frame = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, content: bytes, before: bytes = b"") -> bytes:
    """A PNG of one bit a pixel around what is to be compressed."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_with_text(size: int) -> bytes:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(size)))
    return png(WIDTH, HEIGHT, bytes((WIDTH // 8 + 1) * HEIGHT), text)


def with_orientation(root: Path, orientation: int, turn_mask: bool) -> None:
    """Image 0 stored turned, with the EXIF orientation that turns it back."""
    quarters = {3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(image(root), np.rot90(pixels(image(root)), quarters).copy(), exif=exif, quality=95)
    if turn_mask:
        save(mask(root), np.rot90(np.asarray(Image.open(mask(root))), quarters).copy())


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_bytes(change(path.read_bytes().decode()).encode())


def row(path: Path, number: int, text: str) -> None:
    """Row `number` (the header is row 1) replaced."""
    rows = path.read_text().splitlines()
    rows[number - 1] = text
    path.write_text("\n".join(rows) + "\n")


def label_everything(root: Path, split: str, id_: str) -> None:
    with labels(root, split).open("a") as file:
        file.write(f"{id_},0,0\n")


def bring(root: Path, array: np.ndarray | bytes, id_: str, split: str = "train") -> None:
    """One image more, with mask and label; photographs as `array`, files as bytes."""
    path = images(root, split) / f"{id_}.jpg"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        save(path, array, quality=80)
    shutil.copy(mask(root, split), mask(root, split).with_name(f"{id_}_segmentation.png"))
    label_everything(root, split, id_)


def own_photograph(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) // 2 + 90


def recoloured(array: np.ndarray) -> np.ndarray:
    return np.clip(array * np.array([0.8, 1.0, 0.95]) + 6, 0, 255).astype(np.uint8)


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def replace(path: Path, how: Callable[[Path], Any]) -> None:
    path.unlink()
    how(path)


def lower_case(root: Path) -> None:
    for folder in (images(root), mask(root).parent):
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.lower().replace(".jpg", ".JPG")))
        folder.rename(folder.with_name(folder.name.lower()))
    labels(root).rename(labels(root).with_name(labels(root).name.upper()))


def lesion(value: Any = 255, background: Any = 0, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    array = np.full(shape, background, np.uint8)
    array[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = value
    return array


LESION = lesion(1)


# --- what it is given to


@dataclass
class Outcome:
    """What an entry point did: what it returned, and each line it logged or printed."""

    result: Any
    lines: list[str]


class Started(Exception):
    """Training would start now."""


FLAGS = ["-p", "0", "--size", "32", "32", "--device", "cpu", "--amp", "off"]


def read(root: Path) -> list[tuple]:
    """Sample, pixels and mask of every training image, and its label."""
    samples = read_split(root, "train")
    return [(s, read_image(s.image), None if s.mask is None else read_mask(s.mask)) for s in samples]


def prepared(root: Path) -> ImageCache:
    return prepare(read_split(root, "train", with_labels=False), (WIDTH, HEIGHT), root.parent / "cache")


def main(module: Any, net: str, root: Path, *flags: str) -> None:
    folders = ["--data", str(root), "--cache", str(root.parent / "cache"), "--output", str(root.parent / "model")]
    with pytest.raises(Started):
        module.main(["-n", net, *FLAGS, *folders, *flags])


def inspection(root: Path) -> int:
    """0; what it prints is logged. Other exit codes become a refusal by the line that says why."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = inspect_data.main([str(root)])
    for line in output.getvalue().splitlines():
        log.info("%s", line)
    if code:
        raise UserError(
            error.getvalue().removeprefix("error: ")[:-1] if code == 2 else output.getvalue().splitlines()[-1]
        )
    return code


def weights(root: Path) -> Any:
    model = encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return load_pretrained(model, "mobilenet_unet", root.parent / "weights.pth")
    except UserError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise


@cache
def encoder() -> torch.nn.Module:
    return nets.create_model("mobilenet_unet")


ENTRIES: dict[str, tuple[Callable[..., Any], str]] = {
    "read": (read, "reading the split"),
    "prepare": (cache, "preparing the cache"),
    "seg": (partial(main, seg_main, "res"), "`seg_main.py`"),
    "seg-keep": (lambda root: main(seg_main, "res", root, "--keep-copies"), "`seg_main.py --keep-copies`"),
    "cls": (partial(main, cls_main, "arl14"), "`cls_main.py`"),
    "inspect": (inspection, "`utils.data.check`"),
    "weights": (weights, "pretrained weights"),
}


# --- the table


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        what: what is wrong, for the reader.
        damage: does it to a copy of the small good folder.
        entry: of ENTRIES.
        expected: "read", "refused" or "warned".
        says: what happens. Refused or warned: part of the one line; `…` stands for anything, and the part before
            the first colon must be the name of the file at fault. Read: said in words, and `check` tells whether so.
        check: of what the entry point returned (an Outcome), for "read".
        whole: caches that are rightly complete after a refusal: those of splits without a fault.
    """

    what: str
    damage: Callable[[Path], Any]
    entry: str
    expected: str
    says: str
    check: Callable[[Outcome], Any] | None = None
    whole: int = 0

    @property
    def pattern(self) -> str:
        return ".*".join(re.escape(part) for part in self.says.split("…"))


def refused(what: str, damage: Callable[[Path], Any], entry: str, says: str, whole: int = 0) -> Case:
    return Case(what, damage, entry, "refused", says, whole=whole)


def warned(what: str, damage: Callable[[Path], Any], entry: str, says: str) -> Case:
    return Case(what, damage, entry, "warned", says)


def good(what: str, damage: Callable[[Path], Any], entry: str, says: str, check: Callable[[Outcome], Any]) -> Case:
    return Case(what, damage, entry, "read", says, check)


NO_IMAGES = (
    "._ISIC_9000000.jpg", "ISIC_9000000 (1).jpg", "ISIC_9000009_superpixels.png", "Thumbs.db", "ISIC_٩٠٠٠٠٠١.jpg",
)  # fmt: skip
LOOSE = """seborrheic_keratosis, image_id,note,melanoma

0.0, isic_9000000,"a, b",1

"1","ISIC_9000001",,"0"

"""
METADATA = "ISIC-2017_Training_Data_metadata.csv"
JPG, PNG = "ISIC_9000000.jpg", "ISIC_9000000.png"
MASK = "ISIC_9000000_segmentation.png"
TRAIN_CSV, VAL_CSV = "ISIC-2017_Training_Part3_GroundTruth.csv", "ISIC-2017_Validation_Part3_GroundTruth.csv"
NO_IMAGE = ": truncated or not an image (…); fetch this file again"


@cache
def original() -> np.ndarray:
    """Image 0 of the good folder."""
    return pixels(image(sample_folder()))


def first(outcome: Outcome) -> np.ndarray:
    """Image 0 as it was read or prepared, int."""
    result = outcome.result
    return (result.pixels()[0, ..., :3] if isinstance(result, ImageCache) else result[0][1]).astype(int)


def first_mask(outcome: Outcome) -> np.ndarray:
    result = outcome.result
    return result.pixels()[0, ..., 3] if isinstance(result, ImageCache) else result[0][2]


def same(outcome: Outcome) -> bool:
    return np.array_equal(first(outcome), original())


def close(outcome: Outcome) -> bool:
    return np.abs(first(outcome) - original()).mean() < 4


def grey(outcome: Outcome) -> bool:
    found = first(outcome)
    expected = cv2.cvtColor(original(), cv2.COLOR_RGB2GRAY)[..., None]
    return (
        found.shape == (HEIGHT, WIDTH, 3) and np.abs(found - expected).mean() < 3 and np.ptp(found, axis=2).max() == 0
    )


def is_lesion(outcome: Outcome) -> bool:
    return np.array_equal(first_mask(outcome), LESION)


def ids(outcome: Outcome) -> list[int]:
    return [int(entry[0].id.removeprefix("ISIC_")) - FIRST["train"] for entry in outcome.result]


def read_as(*expected: int) -> Callable[[Outcome], bool]:
    """Labels of the first images, as indices into CLASSES."""
    return lambda outcome: tuple(entry[0].label for entry in outcome.result[: len(expected)]) == expected


def everything(outcome: Outcome) -> bool:
    return ids(outcome) == list(range(8)) and all(entry[2] is not None for entry in outcome.result)


def started(outcome: Outcome) -> bool:
    return outcome.result is None


def says(pattern: str) -> Callable[[Outcome], bool]:
    return lambda outcome: any(re.search(pattern, line) for line in outcome.lines)


IMAGES = [
    refused("JPEG, first half", lambda r: cut(image(r)), "prepare", JPG + NO_IMAGE),
    refused("JPEG without its last 40 bytes", lambda r: cut(image(r), last=40), "read", JPG + NO_IMAGE),
    refused("JPEG, first half, of the test split", lambda r: cut(image(r, "test")), "seg",
        "ISIC_9200000.jpg" + NO_IMAGE, 2),
    refused("JPEG, first half, of the validation split", lambda r: cut(image(r, "validation")), "cls",
        "ISIC_9100000.jpg" + NO_IMAGE, 1),
    refused("JPEG, first half", lambda r: cut(image(r)), "inspect", "training cannot start: …" + JPG + NO_IMAGE),
    refused("JPEG, first 3 bytes", lambda r: cut(image(r), 3 / image(r).stat().st_size), "read", JPG + NO_IMAGE),
    refused("JPEG of no bytes", lambda r: image(r).write_bytes(b""), "prepare",
        JPG + ": truncated or not an image (it is empty)"),
    refused("JPEG of no bytes", lambda r: image(r).write_bytes(b""), "cls",
        JPG + ": truncated or not an image (it is empty)"),
    refused("PNG, first half", lambda r: cut(as_png(image(r))), "prepare", PNG + NO_IMAGE),
    refused("PNG without its end", lambda r: cut(as_png(image(r)), last=12), "read", PNG + NO_IMAGE),
    refused("PNG with one bit changed", lambda r: flip_bit(as_png(image(r)), 0.6), "read", PNG + NO_IMAGE),
    refused("PNG of no bytes", lambda r: as_png(image(r)).write_bytes(b""), "prepare", PNG + NO_IMAGE),
    refused("six damaged images", lambda r: [cut(image(r, index=i)) for i in range(6)], "prepare",
        "ISIC_9000000.jpg: truncated…ISIC_9000004.jpg: truncated…(and 1 more files; see python -m utils.data.check)"),
    refused("HTML saved as .jpg", lambda r: image(r).write_text("<!DOCTYPE html><title>404</title>"), "seg",
        JPG + ": truncated or not an image (no JPEG or PNG, its first bytes are b'<!DOCTYPE html><')"),
    refused("an XML error message saved as .jpg", lambda r: image(r).write_text("<?xml version='1.0'?><Error>"),
        "prepare", JPG + NO_IMAGE),
    refused("GIF saved as .jpg", lambda r: save(image(r), original(), "GIF"), "read",
        JPG + ": truncated or not an image (no JPEG or PNG"),
    refused("TIFF saved as .jpg", lambda r: save(image(r), original(), "TIFF"), "read",
        JPG + ": truncated or not an image (no JPEG or PNG"),
    good("PNG saved as .jpg", lambda r: save(image(r), original(), "PNG"), "read", "the same pixels", same),
    good("grey JPEG", lambda r: save(image(r), Image.fromarray(original()).convert("L"), quality=95), "prepare",
        "grey in all three channels", grey),
    good("grey PNG", lambda r: as_png(image(r), cv2.cvtColor(original(), cv2.COLOR_RGB2GRAY)), "read",
        "grey in all three channels", grey),
    good("16-bit grey PNG",
        lambda r: as_png(image(r), cv2.cvtColor(original(), cv2.COLOR_RGB2GRAY).astype(np.uint16) << 8 | 7), "prepare",
        "the high bytes", grey),
    good("16-bit RGB PNG",
        lambda r: cv2.imwrite(f"{as_png(image(r))}", original()[..., ::-1].astype(np.uint16) * 256 + 99), "read",
        "the high bytes", same),
    good("RGBA PNG, opaque",
        lambda r: as_png(image(r), np.dstack([original(), np.full((HEIGHT, WIDTH), 255, np.uint8)])), "read",
        "the same pixels", same),
    good("RGBA PNG, transparent",
        lambda r: as_png(image(r), np.dstack([original(), np.zeros((HEIGHT, WIDTH), np.uint8)])), "read",
        "the colours, transparency dropped", same),
    good("PNG with a palette and transparency",
        lambda r: save(as_png(image(r)), Image.fromarray(original()).quantize(256), transparency=bytes(range(256))),
        "read", "its colours", close),
    good("CMYK JPEG", lambda r: save(image(r), Image.fromarray(original()).convert("CMYK"), quality=95), "read",
        "the same colours", close),
    good("progressive JPEG", lambda r: save(image(r), original(), quality=95, progressive=True), "prepare",
        "the same colours", close),
    good("JPEG of several pictures (MPO)",
        lambda r: save(image(r), original(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
        "read", "the first", close),
    good("JPEG with bytes after its end", lambda r: image(r).write_bytes(image(r).read_bytes() + b"junk" * 99), "read",
        "the same pixels", same),
    good("JPEG with EXIF data that are none",
        lambda r: save(image(r), original(), exif=b"Exif\0\0" + b"\xff" * 40, quality=95), "prepare",
        "the same colours", close),
    good("JPEG turned upside down by EXIF, its mask upright", lambda r: with_orientation(r, 3, turn_mask=False),
        "prepare", "upright", close),
    good("JPEG turned by a quarter by EXIF, its mask upright", lambda r: with_orientation(r, 6, turn_mask=False),
        "prepare", "upright", close),
    refused("JPEG turned by a quarter by EXIF, its mask as stored", lambda r: with_orientation(r, 8, turn_mask=True),
        "seg", MASK + ": lies on its side against its image (mask 72x96, image 96x72)"),
    refused("JPEG turned by a quarter by EXIF, its mask as stored", lambda r: with_orientation(r, 8, turn_mask=True),
        "inspect", "training cannot start: …" + MASK + ": lies on its side"),
    refused("JPEG of 1 pixel", lambda r: save(image(r), original()[:1, :1]), "prepare",
        JPG + ": too few pixels for a photograph (1x1)"),
    refused("PNG of 1 pixel", lambda r: as_png(image(r), original()[:1, :1]), "cls",
        PNG + ": too few pixels for a photograph (1x1)"),
    refused("PNG 1 pixel wide", lambda r: as_png(image(r), original()[:, :1]), "read",
        PNG + ": too few pixels for a photograph (1x72)"),
    refused("JPEG of 30,000×30,000 by its header", lambda r: resize_header(image(r), 30000, 30000), "prepare",
        JPG + ": too many pixels (30000x30000)"),
    refused("JPEG of 65,535×1,300 by its header (85 MP), in truth 96×72",
        lambda r: resize_header(image(r), 65535, 1300), "read", JPG + NO_IMAGE),
    refused("decompression bomb: PNG of 20 kB with 144 MP",
        lambda r: as_png(image(r)).write_bytes(png(12000, 12000, bytes(1501 * 12000))), "prepare",
        PNG + ": too many pixels (12000x12000); shrink it or take it away"),
    refused("decompression bomb", lambda r: as_png(image(r)).write_bytes(png(12000, 12000, b"")), "inspect",
        "training cannot start: …" + PNG + ": too many pixels (12000x12000)"),
    refused("decompression bomb: PNG with a text of 64 MB",
        lambda r: as_png(image(r)).write_bytes(png_with_text(64 << 20)), "read", PNG + NO_IMAGE),
    good("PNG of 30,000×10", lambda r: as_png(image(r), np.tile(original()[:10], (1, 320, 1))[:, :30000]), "prepare",
        "whole, squeezed to the wanted size", lambda o: o.result.pixels()[0, ..., :3].std() > 5),
    refused("a folder named like an image", lambda r: replace(image(r), Path.mkdir), "prepare",
        JPG + ": not readable (a folder)"),
    refused("a folder named like an image", lambda r: replace(image(r), Path.mkdir), "seg",
        JPG + ": not readable (a folder)"),
]  # fmt: skip

LINKS = [
    refused("image that is a link to itself", lambda r: loop(image(r)), "prepare",
        JPG + ": …Too many levels of symbolic links"),
    refused("image that is a link to itself", lambda r: loop(image(r)), "inspect",
        "training cannot start: …" + JPG + ": not readable"),
    refused("image that is a link to nothing", lambda r: replace(image(r), lambda p: p.symlink_to("gone.jpg")), "seg",
        JPG + ": no such file"),
    refused("image that is a link to /dev/zero", lambda r: replace(image(r), lambda p: p.symlink_to("/dev/zero")),
        "prepare", JPG + ": not readable (no regular file)"),
    refused("image that is a pipe nobody writes to", lambda r: replace(image(r), os.mkfifo), "cls",
        JPG + ": not readable (no regular file)"),
    good("image that is a link to a file elsewhere",
        lambda r: replace(image(r), lambda p: p.symlink_to(image(sample_folder()))), "read", "the same pixels", same),
    good("folder that holds a link to itself", lambda r: (images(r) / images(r).name).symlink_to("."), "read",
        "every image once", everything),
    good("folder that holds a link to the data folder", lambda r: (r / "more").symlink_to(r), "seg", "training starts",
        started),
    refused("data folder that is a link to itself", lambda r: (shutil.rmtree(r), r.symlink_to(r.name)), "seg",
        "data: no such folder"),
    refused("label file that is a link to itself", lambda r: loop(labels(r)), "cls",
        TRAIN_CSV + ": not readable (Too many levels"),
]  # fmt: skip

NAMING = [
    good("all names in other case", lower_case, "read", "every image with its mask and label", everything),
    refused("two images whose names differ in nothing but case",
        lambda r: shutil.copy(image(r), images(r) / "isic_9000000.JPG"), "read",
        "isic_9000000.JPG: differs only in case from ISIC_9000000.jpg; keep one of them"),
    refused("two folders whose names differ in nothing but case", lambda r: (r / images(r).name.lower()).mkdir(),
        "inspect", "isic-2017_training_data: differs only in case from ISIC-2017_Training_Data"),
    refused("two images of one id", lambda r: save(images(r) / PNG, original()), "seg",
        PNG + ": ISIC_9000000.jpg has the same id; keep one of them"),
    good("files that are no images beside them",
        lambda r: [shutil.copy(image(r), images(r) / name) for name in NO_IMAGES], "read", "passed over", everything),
    good("images in a folder of the same name inside",
        lambda r: (images(r).rename(r / "x"), images(r).mkdir(), (r / "x").rename(images(r) / images(r).name)), "read",
        "every image with its mask and label", everything),
    refused("no data folder", shutil.rmtree, "seg", "data: no such folder; put the challenge's data there"),
    refused("a file in place of the data folder", lambda r: (shutil.rmtree(r), r.write_text("")), "cls",
        "data: no such folder"),
    refused("no data folder", shutil.rmtree, "inspect", "data: no such folder"),
]  # fmt: skip

MASKS = [
    good("mask of half its image's size", lambda r: save(mask(r), lesion(shape=(HEIGHT // 2, WIDTH // 2))), "prepare",
        "in its place", is_lesion),
    warned("mask of half its image's size", lambda r: save(mask(r), lesion(shape=(HEIGHT // 2, WIDTH // 2))), "inspect",
        MASK + ": of another size than its image (mask 48x36, image 96x72)"),
    good("mask of 0 and 1", lambda r: save(mask(r), lesion(1)), "prepare", "1 is lesion", is_lesion),
    warned("mask of 0 and 1", lambda r: save(mask(r), lesion(1)), "inspect",
        MASK + ": mask is not 0/255 (2 values up to 1; 1 is read as lesion)"),
    good("mask of 100 and 200", lambda r: save(mask(r), lesion(200, 100)), "read", "above 128 is lesion", is_lesion),
    good("16-bit mask", lambda r: save(mask(r), lesion(1).astype(np.uint16) * 65535), "read", "the same", is_lesion),
    good("1-bit mask", lambda r: save(mask(r), Image.fromarray(lesion()).convert("1")), "read", "the same", is_lesion),
    good("grey mask saved in colours", lambda r: save(mask(r), Image.fromarray(lesion()).convert("RGB")), "read",
        "the same", is_lesion),
    good("opaque mask saved with transparency", lambda r: save(mask(r), Image.fromarray(lesion()).convert("RGBA")),
        "read", "the same", is_lesion),
    good("mask with a palette of black and white", lambda r: save(mask(r), Image.fromarray(lesion()).convert("P")),
        "read", "the same", is_lesion),
    good("mask saved as a JPEG", lambda r: save(mask(r), lesion(), "JPEG", quality=95), "read",
        "the same but for its edge", lambda o: (first_mask(o) != LESION).mean() < 0.01),
    refused("mask in colours", lambda r: save(mask(r), lesion((255, 0, 0), 0, (HEIGHT, WIDTH, 3))), "seg",
        MASK + ": a mask in colours, of which lesion is not known"),
    refused("mask in colours", lambda r: save(mask(r), lesion((255, 0, 0), 0, (HEIGHT, WIDTH, 3))), "inspect",
        "training cannot start: …" + MASK + ": a mask in colours"),
    refused("mask whose lesion is what is not transparent",
        lambda r: save(mask(r), lesion((255, 255, 255, 255), (255, 255, 255, 0), (HEIGHT, WIDTH, 4))), "prepare",
        MASK + ": a mask with transparent pixels"),
    good("empty mask", lambda r: save(mask(r), lesion(0)), "prepare", "no lesion", lambda o: not first_mask(o).any()),
    warned("empty mask", lambda r: save(mask(r), lesion(0)), "inspect", MASK + ": mask is empty (no lesion)"),
    warned("mask that is lesion everywhere", lambda r: save(mask(r), lesion(255, 255)), "inspect",
        MASK + ": mask is full (no background)"),
    refused("mask that lies on its side", lambda r: save(mask(r), lesion().T), "prepare",
        MASK + ": lies on its side against its image"),
    refused("mask of 1 pixel", lambda r: save(mask(r), lesion()[:1, :1]), "prepare",
        MASK + ": too small to be the mask of its image (mask 1x1, image 96x72)"),
    refused("mask of no bytes", lambda r: mask(r).write_bytes(b""), "prepare", MASK + NO_IMAGE),
    refused("mask, first half", lambda r: cut(mask(r)), "seg", MASK + NO_IMAGE),
    refused("HTML saved as a mask", lambda r: mask(r).write_text("<html>"), "inspect",
        "training cannot start: …" + MASK + NO_IMAGE),
    good("cut mask, for classification", lambda r: cut(mask(r)), "cls", "training starts, masks are not opened",
        started),
    warned("image without a mask", lambda r: mask(r).unlink(), "seg",
        "train: 7 images, 1 more left out because they have no mask"),
    warned("image without a mask", lambda r: mask(r).unlink(), "inspect", JPG + ": mask missing"),
    warned("mask without an image", lambda r: shutil.copy(mask(r), mask(r).with_name("ISIC_0000001_segmentation.png")),
        "inspect", "ISIC_0000001_segmentation.png: mask without image"),
    refused("no masks to validate by", lambda r: shutil.rmtree(mask(r, "validation").parent), "seg",
        "data: no validation image with a mask"),
]  # fmt: skip

LABELS = [
    good("byte-order mark", lambda r: rewrite(labels(r), lambda t: "\ufeff" + t), "cls", "training starts", started),
    good("byte-order mark",
        lambda r: rewrite(labels(r), lambda t: "\ufeff" + HEADER + "ISIC_9000000,1,0\nISIC_9000001,0,1\n"), "read",
        "the same labels", read_as(0, 1)),
    good("line ends CR LF",
        lambda r: labels(r).write_text(HEADER + "ISIC_9000000,1.0,0.0\nISIC_9000001,0,1\n", newline="\r\n"), "read",
        "the same labels", read_as(0, 1, None)),
    good("line ends CR", lambda r: rewrite(labels(r), lambda t: t.replace("\n", "\r")), "cls", "training starts",
        started),
    good("other order of columns, spaces, lower case, quotes, a column more, empty lines",
        lambda r: labels(r).write_text(LOOSE), "read", "the same labels", read_as(0, 1)),
    good("a comma at the end of every row",
        lambda r: rewrite(labels(r), lambda t: HEADER + "ISIC_9000000,0,1,\nISIC_9000001,1,0,\n"), "read",
        "the same labels", read_as(1, 0)),
    refused("more cells than columns", lambda r: row(labels(r), 2, "ISIC_9000000,0,0,1"), "read",
        TRAIN_CSV + ": row 2, ISIC_9000000: more cells than columns"),
    refused("semicolons in place of commas", lambda r: rewrite(labels(r), lambda t: t.replace(",", ";")), "cls",
        TRAIN_CSV + ": no column image_id, melanoma, seborrheic_keratosis"),
    refused("a column is missing", lambda r: rewrite(labels(r), lambda t: t.replace(",melanoma", ",mel")), "cls",
        TRAIN_CSV + ": no column melanoma in ["),
    refused("a column twice",
        lambda r: rewrite(labels(r), lambda t: t.replace("seborrheic_keratosis", "seborrheic_keratosis,melanoma")),
        "cls", TRAIN_CSV + ": column melanoma is there a second time"),
    refused("label file of no bytes", lambda r: labels(r).write_bytes(b""), "cls", TRAIN_CSV + ": no column"),
    refused("label file of a header alone", lambda r: labels(r).write_text(HEADER), "cls",
        TRAIN_CSV + ": 8 train images have no label here: ISIC_9000000"),
    refused("HTML saved as the label file", lambda r: labels(r).write_text("<!DOCTYPE html>\n<title>404</title>\n"),
        "cls", TRAIN_CSV + ": no column"),
    refused("an image saved as the label file", lambda r: shutil.copy(image(r), labels(r)), "cls",
        TRAIN_CSV + ": not readable as a comma-separated text file"),
    refused("label file in UTF-16", lambda r: labels(r).write_text(labels(r).read_text(), encoding="utf-16"), "cls",
        TRAIN_CSV + ": not readable as a comma-separated text file"),
    refused("NUL bytes", lambda r: row(labels(r), 2, "ISIC_\0" * 99), "cls", TRAIN_CSV + ": "),
    refused("a cell of 200 kB", lambda r: row(labels(r), 2, "ISIC_9" * 33_000), "cls",
        TRAIN_CSV + ": not readable as a comma-separated text file"),
    refused("an id of 100 kB", lambda r: row(labels(r), 2, "x" * 100_000 + ",0,0"), "cls",
        TRAIN_CSV + ": row 2: image_id is 'xxx"),
    refused("a folder named like the label file", lambda r: replace(labels(r), Path.mkdir), "cls",
        TRAIN_CSV + ": not readable (a folder)"),
    refused("an id twice", lambda r: row(labels(r), 3, "isic_9000000,0,0"), "cls",
        TRAIN_CSV + ": row 3: ISIC_9000000 is there a second time"),
    refused("an id that is none", lambda r: row(labels(r), 3, "ISIC_9000001.jpg,0,0"), "cls",
        TRAIN_CSV + ": row 3: image_id is 'ISIC_9000001.jpg', expected one like ISIC_0000000"),
    refused("a row of commas", lambda r: row(labels(r), 3, ",,"), "read", TRAIN_CSV + ": row 3: image_id is ''"),
    warned("an id that has no image", lambda r: label_everything(r, "train", "ISIC_9000099"), "cls",
        "train: 8 images, 1 of the 9 labelled images are not there (ISIC_9000099)"),
    refused("an id of another split's image", lambda r: label_everything(r, "train", "ISIC_9200001"), "cls",
        TRAIN_CSV + ": 1 ids are images of another split: ISIC_9200001"),
    refused("an image without a label", lambda r: rewrite(labels(r), lambda t: "".join(t.splitlines(True)[:-1])), "cls",
        TRAIN_CSV + ": 1 train images have no label here: ISIC_9000007"),
    refused("label NaN", lambda r: row(labels(r), 2, "ISIC_9000000,nan,0"), "cls",
        TRAIN_CSV + ": row 2, ISIC_9000000: melanoma is 'nan', expected 0 or 1"),
    refused("label NaN, of the test split", lambda r: row(labels(r, "test"), 2, "ISIC_9200000,NaN,0"), "cls",
        "ISIC-2017_Test_v2_Part3_GroundTruth.csv: row 2, ISIC_9200000: melanoma is 'NaN', expected 0 or 1"),
    refused("label empty", lambda r: row(labels(r), 2, "ISIC_9000000,,0"), "cls",
        TRAIN_CSV + ": row 2, ISIC_9000000: melanoma is ''"),
    refused("label 0.5", lambda r: row(labels(r), 2, "ISIC_9000000,0,0.5"), "cls",
        TRAIN_CSV + ": row 2, ISIC_9000000: seborrheic_keratosis is '0.5'"),
    refused("row that ends before its last cell", lambda r: row(labels(r), 2, "ISIC_9000000,0"), "cls",
        TRAIN_CSV + ": row 2, ISIC_9000000: seborrheic_keratosis is None"),
    refused("both labels 1", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"), "cls",
        TRAIN_CSV + ": row 2, ISIC_9000000: both melanoma and seborrheic_keratosis are 1"),
    warned("both labels 1", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"), "inspect",
        "training can start (segmentation only; classification: …" + TRAIN_CSV + ": row 2"),
    good("both labels 1, for segmentation", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"), "seg",
        "training starts, labels are not opened", started),
    refused("no label file", lambda r: labels(r).unlink(), "cls", "data: no labels of the train images"),
    good("no label file of the test split", lambda r: labels(r, "test").unlink(), "cls",
        "training starts, the test is not scored", says("test: 3 images, no labels")),
    refused("no melanoma to validate by",
        lambda r: rewrite(labels(r, "validation"), lambda t: t.replace("1.0,", "0.0,")), "cls",
        VAL_CSV + ": no images of melanoma, so there is no AUC"),
    warned("metadata with an age that is none",
        lambda r: (r / METADATA).write_text("image_id,age_approximate,sex\nISIC_9000000,old,male\n"), "inspect",
        "ISIC-2017_Training_Data_metadata.csv: row 2, ISIC_9000000: age_approximate is 'old'"),
]  # fmt: skip

SPLITS = [
    refused("no training image", lambda r: [path.unlink() for path in images(r).iterdir()], "seg",
        "data: no train image with a mask"),
    refused("no training image", lambda r: shutil.rmtree(images(r)), "cls", "data: no train image"),
    refused("no validation image", lambda r: shutil.rmtree(images(r, "validation")), "seg",
        "data: no validation image with a mask"),
    refused("no validation image", lambda r: shutil.rmtree(images(r, "validation")), "cls",
        "data: no validation image"),
    good("no test image", lambda r: shutil.rmtree(images(r, "test")), "seg", "training starts, there is no test",
        says("test: 0 images")),
    refused("an id in training and test", lambda r: bring(r, own_photograph(1), "ISIC_9200000"), "seg",
        "ISIC_9200000.jpg: 1 ids are both in train and in test: ISIC_9200000; take them out of one"),
    refused("an id in training and test", lambda r: bring(r, own_photograph(1), "ISIC_9200000"), "cls",
        TRAIN_CSV + ": 1 ids are images of another split"),
    refused("an id in training and validation", lambda r: bring(r, own_photograph(1), "ISIC_9100003"), "seg",
        "ISIC_9100003.jpg: 1 ids are both in train and in validation"),
    refused("an id in validation and test", lambda r: bring(r, own_photograph(1), "ISIC_9200000", "validation"), "seg",
        "ISIC_9200000.jpg: 1 ids are both in validation and in test"),
    refused("an id in two splits", lambda r: bring(r, own_photograph(1), "ISIC_9100003"), "inspect",
        "training cannot start: ISIC_9100003 is in two splits: "),
    refused("a test image among the training images, renamed",
        lambda r: bring(r, image(r, "test").read_bytes(), "ISIC_9000050"), "seg",
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (same file): 1 training images are copies of images of other splits", 3),
    refused("a test image among the training images, renamed",
        lambda r: bring(r, image(r, "test").read_bytes(), "ISIC_9000050"), "cls",
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (same file): 1 training images", 3),
    refused("a test image among the training images, renamed",
        lambda r: bring(r, image(r, "test").read_bytes(), "ISIC_9000050"), "inspect",
        "training cannot start: …ISIC_9000050.jpg = …ISIC_9200000.jpg: same file; not known, stops training"),
    refused("a test image with other colours, shrunk",
        lambda r: bring(r, recoloured(pixels(image(r, "test")))[::2, ::2], "ISIC_9000050"), "seg",
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (near copy, similarity 0.9…): 1 training images are copies", 3),
    refused("a test image mirrored", lambda r: bring(r, pixels(image(r, "test"))[:, ::-1].copy(), "ISIC_9000050"),
        "seg", "ISIC_9000050.jpg = …ISIC_9200000.jpg (turned or mirrored copy, similarity", 3),
    refused("a validation image turned by a quarter",
        lambda r: bring(r, np.rot90(pixels(image(r, "validation"))).copy(), "ISIC_9000050"), "cls",
        "ISIC_9000050.jpg = …ISIC_9100000.jpg (turned or mirrored copy, similarity", 3),
    warned("a test image among the training images, renamed",
        lambda r: bring(r, image(r, "test").read_bytes(), "ISIC_9000050"), "seg-keep",
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (same file): training on 1 copies"),
    warned("a test image among the validation images, renamed",
        lambda r: bring(r, image(r, "test").read_bytes(), "ISIC_9100050", "validation"), "seg",
        "ISIC_9100050.jpg = …ISIC_9200000.jpg (same file): 1 validation images are copies of test images"),
    refused("an id of the challenge's test set in training, the test folder absent",
        lambda r: (shutil.rmtree(images(r, "test")), bring(r, own_photograph(1), "ISIC_0012086")), "seg",
        "ISIC_0012086.jpg: 1 train images are of the challenge's test set: ISIC_0012086; take them out"),
    refused("an id of the challenge's validation set in training",
        lambda r: bring(r, own_photograph(1), "ISIC_0001769"), "cls",
        "ISIC_0001769.jpg: 1 train images are of the challenge's validation set: ISIC_0001769"),
    refused("an id of the challenge's test set in validation",
        lambda r: bring(r, own_photograph(1), "ISIC_0016072", "validation"), "seg",
        "ISIC_0016072.jpg: 1 validation images are of the challenge's test set"),
    refused("an id of the challenge's test set in training", lambda r: bring(r, own_photograph(1), "ISIC_0012086"),
        "inspect", "training cannot start: …ISIC_0012086.jpg: 1 train images are of the challenge's test set"),
    warned("ids above those of ISIC 2017", lambda r: (r / "sample.json").unlink(), "seg",
        "data: 16 images have ids above ISIC_0016072, the last of ISIC 2017"),
    warned("ids above those of ISIC 2017", lambda r: (r / "sample.json").unlink(), "inspect",
        "note: 16 images have ids above ISIC_0016072, the last of ISIC 2017"),
    good("a known copy of a test image in training", lambda r: bring(r, own_photograph(1), "ISIC_0012271"), "seg",
        "left out", says("train: 8 images")),
]  # fmt: skip


def weights_file(root: Path) -> Path:
    return root.parent / "weights.pth"


def state() -> dict[str, torch.Tensor]:
    part = encoder().encoder
    return {name: tensor.clone() for name, tensor in getattr(part, "backbone", part).state_dict().items()}


def put(root: Path, content: Any, **options: Any) -> Path:
    torch.save(content, weights_file(root), **options)
    return weights_file(root)


LEGACY = {"_use_new_zipfile_serialization": False}


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def doubling() -> bytes:
    """A pickle that writes a text in hexadecimal digits, then those, and so on: twice as long each time."""
    text, latin1, hexadecimal = (b"X" + struct.pack("<I", len(t)) + t for t in (b"A" * 64, b"latin1", b"hex"))
    first = b"c_codecs\nencode\nq\x00" + text + latin1 + b"\x86Rq\x01" + hexadecimal + b"q\x02"
    return b"\x80\x02](" + first + b"h\x00h\x01h\x02\x86Rq\x01" * 30 + b"e."


def copying() -> bytes:
    """A pickle that makes one set after the other of the same list of 100,000 numbers."""
    numbers = pickle.dumps(list(range(100_000)), 2).removesuffix(b".")  # kept as number 0
    return numbers + b"cbuiltins\nset\nh\x00\x85R0" * 200 + b"."


def archive(root: Path, pickled: bytes, **entries: bytes) -> None:
    """A file as torch.save writes them, around any pickle."""
    with zipfile.ZipFile(weights_file(root), "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in {"version": b"3\n", "byteorder": b"little", **entries}.items():
            file.writestr(f"a/{name}", content)


def claim_entry(root: Path, size: int) -> None:
    """The archive's directory tells `size` for the first tensor."""
    put(root, {"conv1.weight": torch.ones(4)})
    with zipfile.ZipFile(weights_file(root), "a") as file:
        entry = next(entry for entry in file.filelist if entry.filename.endswith("data/0"))
        entry.file_size = entry.compress_size = size
        file.writestr("a/more", b"")  # so that the directory is written anew


def claim_numbers(root: Path, count: int, **options: Any) -> None:
    """The pickle tells `count` for the numbers of a tensor of four."""
    content = put(root, {"conv1.weight": torch.ones(4)}, **options).read_bytes()
    if options:
        weights_file(root).write_bytes(content.replace(b"K\x04", b"J" + struct.pack("<i", count)))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    archive(root, entries.pop("data.pkl").replace(b"K\x04", b"J" + struct.pack("<i", count)), **entries)


def compress(root: Path) -> None:
    """200 MB of zeros in a file of 200 kB."""
    put(root, {"conv1.weight": torch.ones(4)})
    with zipfile.ZipFile(weights_file(root), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/more", bytes(200_000_000))


BOMBS: dict[str, tuple[Callable[[Path], Any], str]] = {  # and the reason that is given
    "archive whose directory claims 10 GB": (lambda r: claim_entry(r, 10 << 30), "its archive claims more than the"),
    "tensor that claims 8 GB": (lambda r: claim_numbers(r, 2 * 10**9), "a tensor claims more bytes than it has)"),
    "tensor that claims 8 GB, in the format before PyTorch 1.6": (
        lambda r: claim_numbers(r, 2 * 10**9, **LEGACY),
        "its tensors claim 8000000000 bytes, the file has",
    ),
    "compressed archive, 200 MB in 200 kB": (compress, "its archive is compressed)"),
    "pickle that asks for 10 GB of zeros": (
        lambda r: archive(r, pickle.dumps(Call(bytearray, 10 << 30), 2)),
        "__builtin__.bytearray is none of the plain types)",
    ),
    "pickle of 1 kB that doubles a text thirty times": (lambda r: archive(r, doubling()), "text in 'hex')"),
    "pickle that copies a list again and again": (lambda r: archive(r, copying()), "calls with more than"),
    "pickle that asks for a tensor of 40 GB": (
        lambda r: archive(r, pickle.dumps(Call(torch.Tensor, 10**5, 10**5), 2)),
        "torch.Tensor is none of the plain types)",
    ),
    "pickle of 30 MB of empty lists": (
        lambda r: archive(r, b"\x80\x02(" + b"]" * (30 << 20) + b"l."),
        "more than 8388608 bytes of names and plain values)",
    ),
}
NOT_PLAIN = "weights.pth: truncated, or not a PyTorch file of plain weights ("

WEIGHTS = [
    good("half precision", lambda r: put(r, {n: t.half() if t.is_floating_point() else t for n, t in state().items()}),
        "weights", "loaded", lambda o: o.result.loaded == len(state())),
    good("format before PyTorch 1.6", lambda r: put(r, {"model": state()}, **LEGACY), "weights", "loaded",
        lambda o: o.result.missing == ()),
    refused("no file", lambda r: None, "weights", "weights.pth: no such file"),
    refused("a folder in its place", lambda r: weights_file(r).mkdir(), "weights",
        "weights.pth: not readable (a folder)"),
    refused("no bytes", lambda r: weights_file(r).write_bytes(b""), "weights", NOT_PLAIN),
    refused("HTML saved as .pth", lambda r: weights_file(r).write_text("<!DOCTYPE html>"), "weights", NOT_PLAIN),
    refused("first half", lambda r: cut(put(r, state())), "weights", NOT_PLAIN),
    refused("all but the last 50 bytes", lambda r: cut(put(r, state()), last=50), "weights", NOT_PLAIN),
    refused("first half, format before PyTorch 1.6", lambda r: cut(put(r, state(), **LEGACY)), "weights", NOT_PLAIN),
    refused("pickle that runs a command",
        lambda r: weights_file(r).write_bytes(pickle.dumps(Call(os.system, f"touch '{r.parent}/owned'"))), "weights",
        NOT_PLAIN),
    refused("archive whose pickle runs a command",
        lambda r: archive(r, pickle.dumps(Call(os.system, f"touch '{r.parent}/owned'"), 2)), "weights",
        NOT_PLAIN + "…system is none of the plain types)"),
    refused("a pickled model", lambda r: put(r, torch.nn.Linear(2, 2)), "weights",
        NOT_PLAIN + "torch.nn.modules.linear.Linear is none of the plain types)"),
    *(refused(what, damage, "weights", NOT_PLAIN + why) for what, (damage, why) in BOMBS.items()),
    refused("tensors of other shapes", lambda r: put(r, state() | {"features.0.0.weight": torch.ones(32, 1, 3, 3)}),
        "weights", "weights.pth: not the weights of …, features.0.0.weight is (32, 1, 3, 3), expected (32, 3, 3, 3)"),
    refused("whole numbers in place of weights",
        lambda r: put(r, state() | {"features.0.1.weight": torch.ones(32, dtype=torch.int64)}), "weights",
        "weights.pth: not the weights of …, features.0.1.weight is torch.int64, expected torch.float32"),
    refused("a tensor is missing", lambda r: put(r, {n: t for n, t in state().items() if n != "features.0.1.bias"}),
        "weights", "weights.pth: not the weights of mobilenet_unet's encoder, it lacks features.0.1.bias"),
    refused("tensors more", lambda r: put(r, state() | {"neck\n\x1b[2Jgone": torch.ones(1)}), "weights",
        r"weights.pth: not the weights of mobilenet_unet's encoder, which has no 'neck\n\x1b[2Jgone'"),
    refused("NaN among the weights", lambda r: put(r, state() | {"features.0.1.weight": torch.full((32,), torch.nan)}),
        "weights", "weights.pth: NaN or infinite values in features.0.1.weight"),
    refused("an infinite weight",
        lambda r: put(r, state() | {"features.0.1.bias": torch.tensor([0.0] * 31 + [torch.inf])}), "weights",
        "weights.pth: NaN or infinite values in features.0.1.bias"),
    refused("one number shown as 40 GB",
        lambda r: put(r, state() | {"features.0.1.bias": torch.ones(1).expand(10**10)}), "weights",
        "weights.pth: no state dict of plain tensors: features.0.1.bias"),
    refused("a sparse tensor", lambda r: put(r, state() | {"features.0.1.bias": torch.ones(32).to_sparse()}), "weights",
        "weights.pth: truncated, or not a PyTorch file of plain weights"),
    refused("complex numbers", lambda r: put(r, state() | {"features.0.1.bias": torch.ones(32, dtype=torch.complex64)}),
        "weights", "weights.pth: truncated, or not a PyTorch file of plain weights"),
    refused("a number for a name", lambda r: put(r, state() | {7: torch.ones(1)}), "weights",
        "weights.pth: no state dict of plain tensors: 7"),
    refused("plain values without tensors", lambda r: put(r, {"epoch": 3}), "weights",
        "weights.pth: no state dict (names and tensors) in this file"),
]  # fmt: skip

CASES = {
    "Images": IMAGES,
    "Links and pipes": LINKS,
    "Names and folders": NAMING,
    "Masks": MASKS,
    "Labels and metadata": LABELS,
    "Splits and leaks": SPLITS,
    "Weights": WEIGHTS,
}
ALL = [(group, case) for group, cases in CASES.items() for case in cases]


# --- the table is true


@cache
def sample_folder() -> Path:
    """The small good folder: 8 training, 8 validation and 3 test images; never changed."""
    folder = Path(tempfile.mkdtemp(prefix="bad_inputs_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_synthetic(folder / "data", COUNTS, (WIDTH, HEIGHT), seed=3)


@pytest.fixture
def root(tmp_path) -> Path:
    return shutil.copytree(sample_folder(), tmp_path / "data")


@pytest.fixture
def lines(monkeypatch) -> Iterator[list[str]]:
    """What is logged or printed during the test."""
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    level = log.level
    log.setLevel(logging.INFO)
    yield found
    log.setLevel(level)


def named(case: Case) -> str:
    return f"{case.entry}: {case.what}"


@pytest.mark.parametrize("case", [case for _, case in ALL], ids=named)
def test_what_the_table_says(case, root, lines, monkeypatch, recwarn):
    if case in LINKS and sys.platform == "win32":
        pytest.skip("Windows has no such links and pipes")
    for module in (seg_main, cls_main):
        monkeypatch.setattr(module, "fit", start)
    case.damage(root)
    enter = ENTRIES[case.entry][0]
    if case.expected == "refused":
        with pytest.raises(UserError) as caught:
            enter(root)
        message = str(caught.value)
        assert re.search(case.pattern, message) and "\n" not in message and len(message) < 1500, message
        assert_nothing_half_written(root.parent, case.whole)
    else:
        outcome = Outcome(enter(root), lines)
        if case.expected == "read":
            assert case.check(outcome), lines
        else:
            assert any(re.search(case.pattern, line) for line in lines), lines
    assert not (root.parent / "owned").exists()
    assert not [warning for warning in recwarn if issubclass(warning.category, (UserWarning, RuntimeWarning))]


def start(*_: Any) -> None:
    raise Started


def assert_nothing_half_written(folder: Path, whole: int) -> None:
    """No unfinished file, `whole` caches (of splits without a fault, and complete), no run."""
    assert list(folder.glob("cache/*.partial")) == []
    caches = list(folder.glob("cache/*.npy"))
    assert len(caches) == whole and all(image.any() for path in caches for image in np.load(path))
    assert not (folder / "model").exists()


def test_the_table_is_large_and_no_row_is_there_twice():
    rows = [(case.what, case.entry) for _, case in ALL]
    assert len(rows) >= 60 and len(set(rows)) == len(rows)
    assert {case.expected for _, case in ALL} == {"read", "refused", "warned"}
    assert {case.entry for _, case in ALL} == set(ENTRIES)


def test_the_good_folder_is_good(root, lines, monkeypatch):
    monkeypatch.setattr(seg_main, "fit", start)
    monkeypatch.setattr(cls_main, "fit", start)
    assert everything(Outcome(read(root), lines)) and prepared(root).pixels().shape == (8, HEIGHT, WIDTH, 4)
    main(seg_main, "res", root)
    main(cls_main, "arl14", root)
    assert inspection(root) == 0 and "problems: none" in lines and lines[-1] == "training can start"


# --- as processes


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, **options)


@pytest.fixture
def oddly_named(root) -> bytes:
    """The good folder under a name with spaces, letters of several alphabets and bytes that are no UTF-8."""
    name = os.fsencode(root.parent) + "/a b/données 数据/".encode() + b"caf\xe9"
    try:
        os.makedirs(os.path.dirname(name))  # noqa: PTH103, PTH120
        os.rename(root, name)  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes no such names")
    return name


def test_a_script_ends_with_one_line_and_exit_code_2(oddly_named, tmp_path):
    path = image(Path(os.fsdecode(oddly_named)))
    path.write_bytes(b"<html>")
    folders = ["--data", oddly_named, "--cache", tmp_path / "cache", "--output", tmp_path / "model"]
    done = run("seg_main.py", "-n", "res", *FLAGS, *folders)
    error = done.stderr.decode()
    assert done.returncode == 2 and error.count("\n") == 1 and error.startswith("error: "), error
    assert "données 数据" in error and "ISIC_9000000.jpg: truncated or not an image" in error
    assert b"Traceback" not in done.stdout
    assert_nothing_half_written(tmp_path, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_inspection_prints_any_path(oddly_named, encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run("-m", "utils.data.check", oddly_named)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.endswith(b"training can start\n")


LIMITED = """
import resource, sys
from pathlib import Path
from utils import UserError
from utils.data.isic import read_image, read_mask
from utils.model.weights import load_file
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    before = peak()
    try:
        (load_file if path.suffix == ".pth" else read_image)(path)
        print(path.name, "read")
    except UserError as error:
        print(path.name, peak() - before, str(error).replace(chr(10), "<newline>"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured by Linux's /proc and limits")
def test_what_claims_gigabytes_is_refused_in_little_memory(root, tmp_path):
    """Each in less than 100 MB beyond what the process had; the limit of 1 GB stops what does not hold to that."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    for number, (damage, _) in enumerate(BOMBS.values()):
        damage(root)
        weights_file(root).rename(folder / f"{number}.pth")
    (folder / "wide.png").write_bytes(png(12000, 12000, bytes(1501 * 12000)))
    (folder / "text.png").write_bytes(png_with_text(1 << 28))
    done = run("-c", LIMITED, folder, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(rows) == len(BOMBS) + 2 and all(row[1] != "read" and "<newline>" not in row[2] for row in rows), rows
    assert max(int(row[1]) for row in rows) < 100, rows


# --- any bytes


FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
CELLS = st.one_of(
    st.sampled_from(["ISIC_0000001", "isic_0000002 ", "ISIC_3", "0", "1", "0.0", "1.0", "", "nan", "inf", "-0", "1e0",
                     "0_1", "1_0", "١", '"', '"a,b"', "unknown", "male", "55",
                     "1955", "image_id", "\ufeff", "\0", "\r"]),
    st.text(max_size=6),
)  # fmt: skip
TABLES = st.builds(
    lambda header, rows, end: (end.join([header, *(",".join(cells) for cells in rows)]) + end).encode(
        "utf-8", "replace"
    ),
    st.sampled_from(
        [HEADER.strip(), "melanoma,image_id,seborrheic_keratosis", "image_id,age_approximate,sex", "image_id"]
    ),
    st.lists(st.lists(CELLS, max_size=4), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


def attempt(function: Callable[..., Any], *arguments: Any, name: str) -> Any:
    """What it returns; None after a UserError, which must be one line and name the file."""
    try:
        return function(*arguments)
    except UserError as error:
        assert name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return None


@FUZZ
@given(content=st.one_of(TABLES, st.binary(max_size=300), st.binary(max_size=100).map(HEADER.encode().__add__)))
def test_any_table_is_read_or_refused(tmp_path, content):
    name = "ISIC-2017_Training_Data_metadata.csv"
    (tmp_path / name).write_bytes(content)
    found = attempt(read_labels, tmp_path / name, name=name)
    for id_, label in (found or {}).items():
        assert re.fullmatch("ISIC_[0-9]+", id_) and label in (0, 1, 2)
    for id_, person in (attempt(read_metadata, tmp_path, "train", name=name) or {}).items():
        assert re.fullmatch("ISIC_[0-9]+", id_) and person.sex in ("female", "male", None)
        assert person.age is None or 0 <= person.age < 200


def encoded(kind: str, array: np.ndarray | Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def sound_images() -> list[bytes]:
    photograph, exif = own_photograph(5), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    paletted = Image.fromarray(photograph).quantize(16)
    return [
        encoded("JPEG", photograph),
        encoded("JPEG", photograph, progressive=True, exif=exif),
        encoded("JPEG", Image.fromarray(photograph).convert("CMYK")),
        encoded("PNG", photograph, exif=exif),
        encoded("PNG", paletted, transparency=bytes(range(16))),
        encoded("PNG", (photograph[..., 0].astype(np.uint16) << 8)),
        encoded("PNG", lesion()),
    ]


def damaged(content: bytes, flips: list[tuple[float, int]], keep: float, reach: int) -> bytes:
    """Bytes changed within the first `reach` (of PNG chunks the checksums are made right), the first share kept."""
    content = bytearray(content)
    for position, value in flips:
        content[int(position * min(reach, len(content) - 1))] ^= value
    if content[:4] == b"\x89PNG":
        at = 8
        while at + 12 <= len(content) and (end := at + 8 + int.from_bytes(content[at : at + 4], "big")) + 4 <= len(
            content
        ):
            content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
            at = end + 4
    return bytes(content[: int(len(content) * keep)])


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=6)
KEEP = st.one_of(st.just(1.0), st.floats(0, 1))


@FUZZ
@given(which=st.integers(0, 6), flips=FLIPS, keep=KEEP, reach=st.sampled_from([30, 200, 700, 10**6]))
def test_any_bytes_are_an_image_or_refused(tmp_path, which, flips, keep, reach):
    path = tmp_path / "ISIC_0000001.jpg"
    path.write_bytes(damaged(sound_images()[which], flips, keep, reach))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.data.images.MAX_PIXELS", 2_000_000)  # so that no example takes long
        found = attempt(read_image, path, (32, 24), name=path.name)
        assert found is None or (found.shape, found.dtype) == ((24, 32, 3), np.uint8)
        whole = attempt(read_image, path, name=path.name)
        size = attempt(image_size, path, name=path.name)
        assert whole is None or (whole.shape == (size[1], size[0], 3) and whole.dtype == np.uint8)
        found = attempt(read_mask, path, name=path.name)
        assert found is None or (found.shape == size[::-1] and found.max() <= 1)


@cache
def sound_checkpoints() -> list[bytes]:
    content = {"model": {"a.weight": torch.ones(3, 2), "b": torch.arange(4)}, "progress": {"epoch": 3, "best": 0.5}}
    files = io.BytesIO(), io.BytesIO()
    torch.save(content, files[0])
    torch.save(content, files[1], **LEGACY)
    return [file.getvalue() for file in files]


def repacked(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    """The archive with bytes changed in its pickle and the checksums right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            entry = old.read(name)
            new.writestr(name, damaged(entry, flips, 1, 10**6) if name.endswith("data.pkl") else entry)
    return target.getvalue()


@FUZZ
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(which=st.integers(0, 2), flips=FLIPS, keep=KEEP)
def test_any_bytes_are_weights_or_refused(tmp_path, which, flips, keep):
    path = tmp_path / "weights.pth"
    whole = sound_checkpoints()[which % 2]
    path.write_bytes(repacked(whole, flips) if which == 2 else damaged(whole, flips, keep, 10**6))
    attempt(load_file, path, name=path.name)
    found = attempt(read_state_dict, path, name=path.name)
    for name, tensor in (found or {}).items():
        assert isinstance(name, str) and tensor.numel() * tensor.element_size() <= path.stat().st_size
