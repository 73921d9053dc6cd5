"""Bad images and masks: each is read rightly, refused with one line that names the file, or warned about."""

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.bad_folder import (
    HEIGHT,
    WIDTH,
    Case,
    Read,
    as_png,
    begins,
    bring,
    check_case,
    cut,
    each,
    good_folder,
    image,
    images,
    labels,
    lesion,
    mask,
    original,
    pixels,
    replace,
    save,
)  # fmt: skip

JPG, PNG, MASK = "ISIC_9000000.jpg", "ISIC_9000000.png", "ISIC_9000000_segmentation.png"
TURNED = ": its photograph is turned by EXIF (orientation …), the mask is not; save the photograph upright if"
BROKEN = ": truncated or not an image (…); fetch this file again"
NO_IMAGES = ("._ISIC_9000000.jpg", "ISIC_9000000 (1).jpg", "ISIC_9000009_superpixels.png", "ISIC_٩٠٠٠٠٠١.jpg")
GREY = cv2.cvtColor(original(), cv2.COLOR_RGB2GRAY)


def same(found: list[Read]) -> bool:
    return np.array_equal(found[0].pixels, original())


def close(found: list[Read]) -> bool:
    return np.abs(found[0].pixels - original()).mean() < 4


def is_lesion(found: list[Read]) -> bool:
    return np.array_equal(found[0].mask, lesion(1))


def everything(found: list[Read]) -> bool:
    ids = [f"ISIC_{number}" for number in range(9000000, 9000008)]
    return [row.id for row in found] == ids and not any(row.mask is None or row.label is None for row in found)


def flip_bit(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)


def claim_size(path: Path, width: int, height: int) -> None:
    """A JPEG whose header tells another size."""
    content = path.read_bytes()
    frame = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :])


def turn(root: Path, orientation: int, turn_mask: bool = False, tag_mask: bool = False, side: int = WIDTH) -> None:
    """Image 0 (its first `side` columns) stored turned, with the EXIF orientation that turns it back."""
    quarters = {3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(image(root), np.rot90(pixels(image(root))[:, :side], quarters).copy(), exif=exif, quality=95)
    outline = np.asarray(Image.open(mask(root)))[:, :side]
    save(mask(root), np.rot90(outline, quarters * turn_mask).copy(), exif=exif if tag_mask else b"")


def lower_case(root: Path) -> None:
    for folder in (images(root), mask(root).parent):
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.lower().replace(".jpg", ".JPG")))
        folder.rename(folder.with_name(folder.name.lower()))
    labels(root).rename(labels(root).with_name(labels(root).name.upper()))


def move_inside(root: Path) -> None:
    folder = root.rename(root.with_name("ISIC2017"))
    root.mkdir()
    folder.rename(root / folder.name)


def as_tiff(path: Path, picture: np.ndarray | Image.Image, **options: Any) -> None:
    """Under the name that is there."""
    save(path, picture, "TIFF", **options)


def pages(path: Path, kind: str) -> None:
    save(path, original(), kind, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])


def mask_of(*values: int, kind: str = "PNG", dtype: type = np.uint8) -> Callable[[Path], None]:
    """The mask with these values in place of 0, 255 and the edge between."""

    def damage(root: Path) -> None:
        whole = lesion(1)
        inner = cv2.erode(whole, np.ones((3, 3), np.uint8))
        save(mask(root), np.array([*values, values[-1]][:3], dtype)[2 * whole - inner], kind)

    return damage


def picture() -> Image.Image:
    return Image.fromarray(original())


IMAGES = [
    Case("JPEG, first half", lambda r: cut(image(r)), JPG + BROKEN, "prepare inspect"),
    Case("test image, first half", lambda r: cut(image(r, "test")), "ISIC_9200000.jpg" + BROKEN, "seg inspect"),
    Case("training image without a mask, cut", lambda r: (mask(r).unlink(), cut(image(r))), begins, "seg inspect"),
    Case("known copy, cut", lambda r: bring(r, b"cut", "ISIC_0012271"), begins, "seg inspect"),
    Case("no bytes", lambda r: image(r).write_bytes(b""), JPG + ": truncated or not an image (it has 0 bytes)", "cls"),
    Case("PNG with one bit changed", lambda r: flip_bit(as_png(image(r)), 0.6), PNG + BROKEN, "read"),
    Case("six images with a fault each", lambda r: [save(image(r, index=i), original()[:1, : i + 1]) for i in range(6)],
        "0.jpg: too few pixels…2.jpg: …(3x1)…(and 3 more files; see python -m utils.data.check FOLDER)", "prepare"),
    Case("HTML saved as .jpg", lambda r: image(r).write_text("<!DOCTYPE html><title>404</title>"),
        JPG + ": a web page instead of an image; fetch this file again", "seg"),
    Case("text saved as .jpg", lambda r: image(r).write_text("Rate limit exceeded"),
        JPG + ": not an image in JPEG, PNG, TIFF, BMP or WebP, its first bytes are b'Rate limit excee'", "read"),
    *(Case(f"{what} named .jpg", lambda r, start=start: image(r).write_bytes(start + bytes(200)), f"{JPG}: {advice}",
        "read") for what, start, advice in (
            ("HEIC", b"\0\0\0\x18ftypheic", "HEIC; convert it to JPEG or PNG"),
            ("AVIF", b"\0\0\0\x20ftypavif", "AVIF; convert it to JPEG or PNG"),
            ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000; convert it to JPEG or PNG"),
            ("JPEG XL", b"\xff\x0a", "JPEG XL; convert it to JPEG or PNG"),
            ("GIF", b"GIF89a", "GIF; convert it to PNG"),
            ("DICOM", bytes(128) + b"DICM", "DICOM; export the photograph in it as JPEG or PNG"),
            ("Git LFS pointer", b"version https://git-lfs.github.com", "a Git LFS pointer instead of the file; git"),
        )),
    Case("PNG saved as .jpg", lambda r: save(image(r), original(), "PNG"), same, "read"),
    Case("BMP named .jpg", lambda r: save(image(r), original(), "BMP"), same, "read"),
    Case("TIFF named .jpg", lambda r: as_tiff(image(r), original()), same, "read"),
    Case("WebP named .jpg", lambda r: save(image(r), original(), "WEBP", lossless=True), same, "read"),
    Case("16-bit grey PNG", lambda r: as_png(image(r), GREY.astype(np.uint16) << 8),
        PNG + ": grey of more than 8 bits", "read"),
    Case("TIFF of fractions", lambda r: as_tiff(image(r), GREY / np.float32(255)), JPG + ": pixels of mode F", "read"),
    Case("TIFF of two pages", lambda r: pages(image(r), "TIFF"), JPG + ": 2 pictures in one file; save the one", "seg"),
    Case("TIFF, first half", lambda r: (as_tiff(image(r), original()), cut(image(r))),
        JPG + BROKEN + ", or save it as PNG if it is a rare kind of TIFF", "read"),
    Case("16-bit RGB PNG",
        lambda r: cv2.imwrite(f"{as_png(image(r))}", original()[..., ::-1].astype(np.uint16) * 256 + 99), same, "read"),
    Case("RGBA PNG, transparent", lambda r: as_png(image(r), np.dstack([original(), GREY * 0])), same, "read"),
    Case("PNG with a palette and transparency",
        lambda r: save(as_png(image(r)), picture().quantize(256), transparency=bytes(range(256))), close, "read"),
    Case("CMYK JPEG", lambda r: save(image(r), picture().convert("CMYK"), quality=95), close, "read"),
    Case("JPEG of several pictures", lambda r: save(image(r), original(), "MPO", save_all=True,
        append_images=[Image.new("RGB", (WIDTH, HEIGHT))]), close, "read"),
    Case("bytes after the end", lambda r: image(r).write_bytes(image(r).read_bytes() + b"junk" * 99), same, "read"),
    Case("EXIF data that are none",
        lambda r: save(image(r), original(), exif=b"Exif\0\0" + b"\xff" * 40, quality=95), close, "prepare"),
    Case("turned upside down by EXIF, its mask perhaps", lambda r: turn(r, 3), MASK + TURNED, "seg inspect"),
    Case("turned by a quarter, square", lambda r: turn(r, 6, side=HEIGHT), MASK + TURNED, "seg"),
    Case("turned upside down, classified", lambda r: turn(r, 3), begins, "cls"),
    Case("turned upside down as its mask is, by both", lambda r: turn(r, 3, turn_mask=True, tag_mask=True),
        lambda found: close(found) and np.array_equal(found[0].mask * 255, Image.open(mask(good_folder()))), "prepare"),
    Case("turned by a quarter by EXIF, its mask upright", lambda r: turn(r, 6), close, "prepare"),
    Case("turned by a quarter by EXIF, its mask as stored", lambda r: turn(r, 8, turn_mask=True),
        MASK + ": lies on its side against its image (mask 72x96, image 96x72)", "seg inspect"),
    Case("JPEG of 1 pixel", lambda r: save(image(r), original()[:1, :1]), "too few pixels for a photograph (1x1)",
        "prepare"),
    Case("30,000×30,000 by its header", lambda r: claim_size(image(r), 30000, 30000),
        JPG + ": too many pixels (30000x30000)", "prepare"),
    Case("PNG with a colour profile of 3 MB",
        lambda r: save(as_png(image(r)), original(), icc_profile=bytes(3 << 20)), same, "read"),
    Case("a folder named like an image", lambda r: replace(image(r), Path.mkdir), JPG + ": not readable (a folder)",
        "seg"),
]  # fmt: skip

LINKS = [
    Case("link to nothing", lambda r: replace(image(r), lambda p: p.symlink_to("gone")), JPG + ": no such file", "seg"),
    Case("folder that holds a link to itself", lambda r: (images(r) / images(r).name).symlink_to("."), everything,
        "read"),
]  # fmt: skip

NAMES = [
    Case("all names in other case", lower_case, everything, "read"),
    Case("two images whose names differ in case", lambda r: shutil.copy(image(r), images(r) / "isic_9000000.JPG"),
        "isic_9000000.JPG: ISIC_9000000.jpg has the same id; keep one of them", "read"),
    Case("two folders whose names differ in case", lambda r: (r / images(r).name.lower()).mkdir(),
        everything, "read"),
    Case("two images of one id", lambda r: save(images(r) / PNG, original()),
        PNG + ": ISIC_9000000.jpg has the same id; keep one of them", "seg"),
    Case("files that are no images", lambda r: [shutil.copy(image(r), images(r) / name) for name in NO_IMAGES],
        everything, "read"),
    Case("no data folder", shutil.rmtree, "data: no such folder; put the challenge's data there", "seg inspect"),
    Case("the folder above the data folder", move_inside, "data/ISIC2017/ has them: --data /…data/ISIC2017", "seg"),
    Case("a file in its place", lambda r: (shutil.rmtree(r), r.write_text("")), "data: no such folder", "cls"),
]  # fmt: skip

MASKS = [
    Case("smaller than its image, and squashed", lambda r: save(mask(r), lesion(shape=(HEIGHT // 2, WIDTH // 3))),
        is_lesion, "prepare"),
    Case("0 and 255 in 32 bits", mask_of(0, 255, kind="TIFF", dtype=np.int32), is_lesion, "prepare"),
    Case("more than 16 bits", mask_of(0, 1 << 20, kind="TIFF", dtype=np.int32), MASK + ": values from 0 to 1048576",
        "read"),
    Case("class numbers", mask_of(0, 1, 2), MASK + ": a mask of values 0, 1, 2, of which lesion is not", "seg inspect"),
    *(Case(f"mode {mode}", lambda r, mode=mode: save(mask(r), Image.fromarray(lesion()).convert(mode)), is_lesion,
        "read") for mode in ("1", "RGB", "RGBA", "P")),
    Case("in colours", lambda r: save(mask(r), lesion((255, 0, 0), 0, (HEIGHT, WIDTH, 3))),
        MASK + ": a mask in colours, of which lesion is not known", "seg inspect"),
    Case("lesion is what is not transparent",
        lambda r: save(mask(r), lesion((255, 255, 255, 255), (255, 255, 255, 0), (HEIGHT, WIDTH, 4))),
        MASK + ": a mask with transparent pixels", "prepare"),
    Case("empty", lambda r: save(mask(r), lesion(0)), lambda found: not found[0].mask.any(), "prepare"),
    Case("lies on its side", lambda r: save(mask(r), lesion().T), MASK + ": lies on its side", "prepare"),
    Case("1 pixel", lambda r: save(mask(r), lesion()[:1, :1]),
        MASK + ": too small to be the mask of its image (mask 1x1, image 96x72)", "prepare"),
    Case("first half", lambda r: cut(mask(r)), MASK + BROKEN, "seg"),
    Case("cut, for classification", lambda r: cut(mask(r)), begins, "cls"),
    Case("not there", lambda r: mask(r).unlink(), "train: 7 images, 1 more left out because they have no mask", "seg",
        warns=True),
    Case("no masks to validate by", lambda r: shutil.rmtree(mask(r, "validation").parent),
        "data: no validation image with a mask", "seg inspect"),
]  # fmt: skip


@each(*IMAGES, *NAMES)
def test_images(case, entry, root, lines, recwarn):
    check_case(case, entry, root, lines)
    assert not [warning for warning in recwarn if issubclass(warning.category, (UserWarning, RuntimeWarning))]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such links")
@each(*LINKS)
def test_links(case, entry, root, lines):
    check_case(case, entry, root, lines)


@each(*MASKS)
def test_masks(case, entry, root, lines):
    check_case(case, entry, root, lines)


@each(Case("good", lambda r: None, begins, "seg keep cls inspect"), Case("whole", lambda r: None, same, "read prepare"))
def test_the_good_folder_is_good(case, entry, root, lines):
    check_case(case, entry, root, lines)
