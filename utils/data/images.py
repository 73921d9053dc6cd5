"""Image files as arrays: decoded by Pillow, which refuses truncated files, and resized by OpenCV."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from utils import UserError
from utils.files import LFS_POINTER, check_file, listed, quoted

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of bombs; the largest image of ISIC 2017 has a third of it
MIN_SIDE = 8  # pixels; what is narrower is no photograph
_READ = {  # by the first bytes
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    rb"II[*+]\0|MM\0[*+]": TiffImageFile,
    rb"BM": BmpImageFile,
    rb"RIFF....WEBP": WebPImageFile,
}
_NOT_READ = {
    rb"....ftyp(he|mi|ms)": "HEIC; convert it to JPEG or PNG",
    rb"....ftypav": "AVIF; convert it to JPEG or PNG",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000; convert it to JPEG or PNG",
    rb"\0\0\0\x0cJXL |\xff\x0a": "JPEG XL; convert it to JPEG or PNG",
    rb"GIF8": "GIF; convert it to PNG",
    rb".{128}DICM": "DICOM; export the photograph in it as JPEG or PNG",
    rb"\s*<(!doctype|html)": "a web page instead of an image; fetch this file again",
    LFS_POINTER: "a Git LFS pointer instead of the file; git lfs pull fetches it",
}
# What editors and scanners leave in a PNG beside the pixels (history, colour profile) may exceed Pillow's 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20


class Frame(NamedTuple):
    """Of an image file: (width, height), upright; EXIF's orientation, 1 to 8, where 1 is stored upright or not told."""

    size: tuple[int, int]
    orientation: int


class StoredMask(NamedTuple):
    """A mask as it is stored, uint8 or uint16 [H, W], and its distinct values in order; above `above` is lesion."""

    grey: np.ndarray
    values: Sequence[int]
    above: int
    frame: Frame


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The photograph as uint8 [H, W, 3], RGB, 0 to 255, upright by its EXIF orientation.

    `size` = (width, height) is reached exactly and keeps the whole frame (the aspect ratio is squashed): area averaging
    when shrinking, else linear. JPEGs are then decoded at 1/2, 1/4 or 1/8 where that leaves at least twice the size.
    Grey, palette and CMYK become RGB, transparency is dropped, 16-bit colours lose their low byte. UserError when the
    file is absent, truncated, no JPEG, PNG, TIFF, BMP or WebP (whatever its name), grey of more than 8 bits, holds
    several pictures, or has more than MAX_PIXELS or a side below MIN_SIDE.
    """
    array = decode_image(path, size)
    return array if size is None else resized(array, size)


def decode_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """As `read_image`, but at the file's own size, or at 1/2, 1/4 or 1/8 of it where that leaves twice `size`."""
    with _opened(path, size, min_side=MIN_SIDE) as (image, _):
        if image.mode.startswith("I"):
            raise UserError(f"{path}: grey of more than 8 bits, of which white is not known; save it as 8-bit PNG")
        # By way of RGBA, because Pillow warns about palettes with transparency.
        return np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


def resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 [H, W, 3] at `size` = (width, height): area averaging when shrinking, else linear."""
    if array.shape[1::-1] == tuple(size):
        return array
    shrinks = size[0] <= array.shape[1] and size[1] <= array.shape[0]
    return cv2.resize(array, tuple(size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The lesion mask as uint8 [H, W] of 0 and 1: 1 where the stored value is above `StoredMask.above`.

    That is 128 (challenge rule), or 0 in a mask of 0 and one other value. Resized to `size` = (width, height) by the
    nearest pixel centre. Raises UserError as `stored_mask`.
    """
    stored = stored_mask(path)
    mask = (stored.grey > stored.above).astype(np.uint8)
    # Not INTER_NEAREST, which shifts the mask by up to half a pixel against the image.
    return mask if size is None else cv2.resize(mask, tuple(size), interpolation=cv2.INTER_NEAREST_EXACT)


def stored_mask(path: str | Path) -> StoredMask:
    """A mask's values; equal channels become grey.

    Raises UserError as `read_image` does, and where what is lesion depends on the reader: in colours, in transparency,
    in class numbers.
    """
    with _opened(path) as (image, frame):
        if image.mode.startswith("I"):
            grey = np.asarray(image)  # "I;16", or "I" of 32 bits
            if grey.min() < 0 or grey.max() >= 1 << 16:
                raise UserError(f"{path}: values from {grey.min()} to {grey.max()}; save it with 8 or 16 bits")
            grey = grey.astype(np.uint16)
        else:
            if image.mode not in ("1", "L") or image.has_transparency_data:
                channels = np.asarray(image.convert("RGBA"))
                if channels[..., 3].min() < 255:
                    raise UserError(f"{path}: a mask with transparent pixels; save it as opaque grey, 0 and 255")
                if np.ptp(channels[..., :3], axis=2).max() > 64:  # less is the noise of a JPEG
                    raise UserError(
                        f"{path}: a mask in colours, of which lesion is not known; save it as grey, 0 and 255"
                    )
            grey = np.array(image.convert("L"))
    count = 1 + np.iinfo(grey.dtype).max
    pixels = cv2.calcHist([grey], [0], None, [count], [0, count]).ravel()
    values = np.flatnonzero(pixels).tolist()
    return StoredMask(grey, values, _lesion_above(path, values, pixels), frame)


def _lesion_above(path: str | Path, values: list[int], pixels: np.ndarray) -> int:
    """The value above which a mask's pixels are lesion, by its distinct `values` in order, and the pixels of any value.

    128 (of 16 bits: half of their range) is the challenge's rule, which masks with grey borders need. 0 where there is
    nothing but 0 and one other value, whatever it is, or 1 alone. UserError where lesion is this or that: in class
    numbers (below 20), and in those beside one high value, which may mark an edge to be ignored. A JPEG may hold such
    values too, but hardly any pixels of them.
    """
    if (values[0] == 0 and len(values) <= 2) or values == [1]:
        return 0
    half = 128 if values[-1] < 256 else 128 * 257
    edge = values[-1] > half and len(values) > 2 and values[-2] < 20 and pixels[1:20].sum() >= 0.1 * pixels[values[-1]]
    if values[-1] >= 20 and not edge:
        return half
    raise UserError(
        f"{path}: a mask of values {listed(values, most=4)}, of which lesion is not known; save it as 0 and 255"
    )


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header alone, upright. Raises UserError when the header cannot be read."""
    return read_frame(path).size


def read_frame(path: str | Path) -> Frame:
    """As `image_size`, with the EXIF orientation."""
    with _opened(path, decode=False) as (_, frame):
        return frame


def pair_fault(image: Frame, mask: Frame) -> str:
    """Why a mask may not be used with an image; "" when it may: mirrors have resized ones."""
    sizes = "mask {}x{}, image {}x{}".format(*mask.size, *image.size)
    turned = image.size[::-1] != image.size
    if min(mask.size) < MIN_SIDE <= min(image.size):
        return f"too small to be the mask of its image ({sizes}); put the right one there"
    if turned and mask.size == image.size[::-1]:
        return f"lies on its side against its image ({sizes}); turn one of them, or take the image's EXIF rotation away"
    if image.orientation != 1 == mask.orientation and not (
        image.orientation > 4 and turned and mask.size == image.size
    ):
        return (
            f"its photograph is turned by EXIF (orientation {image.orientation}), the mask is not; save the photograph "
            "upright if the mask is, else without that tag"
        )
    return ""


@contextmanager
def _opened(
    path: str | Path, size: tuple[int, int] | None = None, decode: bool = True, min_side: int = 1
) -> Iterator[tuple[Image.Image, Frame]]:
    """The file as a Pillow image, decoded and upright, and its frame; what Pillow cannot read becomes a UserError."""
    try:
        kind = _kind(check_file(path))
        with kind(path) as image:  # not Image.open, which warns of large images where we refuse them
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path}: too many pixels ({width}x{height}); shrink it or take it away")
            if min(width, height) < min_side:
                raise UserError(f"{path}: too few pixels for a photograph ({width}x{height}); take it away")
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise UserError(f"{path}: {count} pictures in one file; save the one that is meant as a JPEG or PNG")
            frame = _frame(image)
            if decode:
                if image.format == "PNG":
                    with kind(path) as other:
                        other.verify()  # decoding overlooks a damaged chunk or a missing end
                if size is not None:
                    wanted = size[::-1] if frame.orientation > 4 else size
                    image.draft(None, (2 * wanted[0], 2 * wanted[1]))  # does nothing but to a JPEG
                image.load()
                if image.mode in ("F", "LAB"):
                    raise UserError(f"{path}: pixels of mode {image.mode}, which have no range; save it as 8-bit PNG")
                ImageOps.exif_transpose(image, in_place=True)
            yield image, frame
    except UserError:
        raise
    except Exception as error:  # of bytes that nobody wrote on purpose, decoders raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: not readable ({error.strerror})") from error
        reason = quoted(" ".join(str(error).split())) or type(error).__name__
        common = kind.format in ("JPEG", "PNG") and not reason.startswith("cannot handle")
        rare = "" if common else f", or save it as PNG if it is a rare kind of {kind.format}"
        raise UserError(f"{path}: truncated or not an image ({reason}); fetch this file again{rare}") from error


def _kind(path: Path) -> type[Image.Image]:
    """Pillow's class for the file, by its first bytes: names of files often tell another format."""
    with path.open("rb") as file:
        start = file.read(132)
    for signature, kind in _READ.items():
        if re.match(signature, start, re.DOTALL):
            return kind
    for signature, advice in _NOT_READ.items():
        if re.match(signature, start, re.DOTALL | re.IGNORECASE):
            raise UserError(f"{path}: {advice}")
    if len(start) < 16:
        raise UserError(f"{path}: truncated or not an image (it has {len(start)} bytes); fetch this file again")
    read = "JPEG, PNG, TIFF, BMP or WebP"
    raise UserError(
        f"{path}: not an image in {read}, its first bytes are {start[:16]!r}; convert it, or fetch it again"
    )


def _frame(image: Image.Image) -> Frame:
    """Before it is decoded: a TIFF is turned by that, and some versions of Pillow tell its upright size before."""
    orientation = image.getexif().get(0x0112, 1)
    width, height = (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size
    if orientation not in range(2, 9):
        return Frame((width, height), 1)
    return Frame((height, width) if orientation > 4 else (width, height), orientation)
