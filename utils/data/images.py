"""Image files as arrays: decoded by Pillow, which refuses truncated files, and resized by OpenCV."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from utils import UserError
from utils.files import check_file, quoted

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of bombs; the largest image of ISIC 2017 has a third of it
MIN_SIDE = 8  # pixels; what is narrower is no photograph
_SIGNATURES = {b"\xff\xd8\xff": JpegImageFile, b"\x89PNG\r\n\x1a\n": PngImageFile}


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The photograph as uint8 [H, W, 3], RGB, 0 to 255, upright by its EXIF orientation.

    `size` = (width, height) is reached exactly and keeps the whole frame (the aspect ratio is squashed): area averaging
    when shrinking, else linear. JPEGs are then decoded at 1/2, 1/4 or 1/8 where that leaves at least twice the size.
    Grey, palette and CMYK become RGB, transparency is dropped, 16-bit values lose their low byte. UserError when the
    file is absent, truncated, no JPEG or PNG, or has more than MAX_PIXELS or a side below MIN_SIDE.
    """
    array = decode_image(path, size)
    return array if size is None else resized(array, size)


def decode_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """As `read_image`, but at the file's own size, or at 1/2, 1/4 or 1/8 of it where that leaves twice `size`."""
    with _opened(path, size, min_side=MIN_SIDE) as image:
        if image.mode.startswith("I"):
            return np.repeat(_high_byte(np.asarray(image))[:, :, None], 3, axis=2)
        # By way of RGBA, because Pillow warns about palettes with transparency.
        return np.array((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


def resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image uint8 [H, W, 3] at `size` = (width, height): area averaging when shrinking, else linear."""
    if array.shape[1::-1] == tuple(size):
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
    """A mask's values as stored, uint8 [H, W]; equal channels become grey.

    Raises UserError as `read_image` does, and for colours or transparency: what is lesion there depends on the reader.
    """
    with _opened(path) as image:
        if image.mode.startswith("I"):
            return _high_byte(np.asarray(image))
        if image.mode not in ("1", "L") or image.has_transparency_data:
            channels = np.asarray(image.convert("RGBA"))
            if channels[..., 3].min() < 255:
                raise UserError(f"{path}: a mask with transparent pixels; save it as opaque grey, 0 and 255")
            if np.ptp(channels[..., :3], axis=2).max() > 64:  # less is the noise of a JPEG
                raise UserError(f"{path}: a mask in colours, of which lesion is not known; save it as grey, 0 and 255")
        return np.array(image.convert("L"))


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header alone, upright. Raises UserError when the header cannot be read."""
    with _opened(path, decode=False) as image:
        return image.size[::-1] if _lies_on_its_side(image) else image.size


def pair_fault(image: tuple[int, int], mask: tuple[int, int]) -> str:
    """Why a mask of this (width, height) is none of an image of that; "" when it may be: mirrors have resized ones."""
    sizes = "mask {}x{}, image {}x{}".format(*mask, *image)
    if min(mask) < MIN_SIDE <= min(image):
        return f"too small to be the mask of its image ({sizes}); fetch this file again"
    if mask == image[::-1] != image:
        return f"lies on its side against its image ({sizes}); turn one of them, or take the image's EXIF rotation away"
    return ""


@contextmanager
def _opened(
    path: str | Path, size: tuple[int, int] | None = None, decode: bool = True, min_side: int = 1
) -> Iterator[Image.Image]:
    """The file as a Pillow image, decoded and upright; what Pillow cannot read becomes a UserError."""
    check_file(path)
    try:
        with _by_signature(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path}: too many pixels ({width}x{height}); shrink it or take it away")
            if min(width, height) < min_side:
                raise UserError(f"{path}: too few pixels for a photograph ({width}x{height}); take it away")
            if decode:
                if image.format == "PNG":
                    with _by_signature(path) as other:
                        other.verify()  # decoding overlooks a damaged chunk or a missing end
                if size is not None:
                    wanted = size[::-1] if _lies_on_its_side(image) else size
                    image.draft(None, (2 * wanted[0], 2 * wanted[1]))  # does nothing but to a JPEG
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
            yield image
    except UserError:
        raise
    except Exception as error:  # of bytes that nobody wrote on purpose, decoders raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: not readable ({error.strerror})") from error
        reason = quoted(" ".join(str(error).split())) or type(error).__name__
        raise UserError(f"{path}: truncated or not an image ({reason}); fetch this file again") from error


def _by_signature(path: str | Path) -> Image.Image:
    """A JPEG or PNG by its first bytes. Not by Image.open, which warns of large images where we refuse them."""
    with Path(path).open("rb") as file:
        start = file.read(16)
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind(path)
    raise ValueError(f"no JPEG or PNG, its first bytes are {start!r}" if start else "it is empty")


def _lies_on_its_side(image: Image.Image) -> bool:
    return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # 0x0112: EXIF orientation


def _high_byte(values: np.ndarray) -> np.ndarray:
    """16-bit grey, which Pillow gives as "I;16" or "I", to uint8; a mask of 0 and 1 stays one."""
    return (values if values.max() <= 1 else np.clip(values, 0, 65535) >> 8).astype(np.uint8)
