"""Prepared images: each original is decoded once, at the wanted size, into a file that later runs map into memory.

A cache is named after what it is made of: the SHA-256 of the originals' bytes (images, and masks where they are kept),
their sizes, and the version of this pipeline. So data that is moved or copied finds its cache again, and other content
never does. `hashes.json` beside the caches spares files the hashing whose path, size, mtime and ctime are the same.

A cache is a NumPy file, uint8 [bytes]: one image after the other, each followed by its center where it has one. It has
its name when it is whole. One process at a time builds in a folder; others wait. How an image is kept depends on that
image and the network's settings alone, never on the images beside it.
"""

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError
from utils.config import CACHE
from utils.data.images import decode_image, image_size, pair_fault, read_frame, read_image, read_mask, resized
from utils.data.isic import Sample
from utils.data.parallel import attempts
from utils.data.transforms import CENTER, Pixels, Size, Sizes, take
from utils.files import check_file, load_json, locked, readable_size, sha256, written_whole
from utils.logger import log

VERSION = 4  # raise it when other pixels are stored, or the layout changes


class ImageCache:
    """Decoded images of one split. The file stays open with the object, and so in use though it be deleted (POSIX).

    Attributes:
        sizes: (width, height) of each image, and of its center or None.
        channels: 4 with the mask (0 or 1) after RGB, else 3.
        digests: SHA-256 of each original image.
    """

    def __init__(
        self, samples: Sequence[Sample], path: Path, sizes: Sequence[Sizes], channels: int, digests: Sequence[str] = ()
    ) -> None:
        self.samples, self.path, self.sizes, self.channels, self.digests = samples, path, sizes, channels, digests
        self._bytes = np.load(path, mmap_mode="r")
        self._starts = np.cumsum([0, *(_length(each, channels) for each in sizes)])

    def __reduce__(self) -> tuple:
        """A worker process opens the file itself."""
        return ImageCache, (self.samples, self.path, self.sizes, self.channels)

    def frame(self, index: int) -> np.ndarray:
        """The whole image, uint8 [height, width, channels]; read-only, in memory once for all processes."""
        width, height = self.sizes[index][0]
        start = self._starts[index]
        return self._bytes[start : start + width * height * self.channels].reshape(height, width, self.channels)

    def image(self, index: int) -> Pixels:
        """It, with its center where there is one: what `utils.data.transforms.take` takes patches from."""
        center, frame = self.sizes[index][1], self.frame(index)
        if center is None:
            return frame
        return frame, self._bytes[self._starts[index] + frame.size : self._starts[index + 1]].reshape(*center[::-1], 3)


class JoinedCache:
    """The images of `first`, then those of `extra` at the indices `kept`."""

    def __init__(self, first: ImageCache, extra: ImageCache, kept: Sequence[int]) -> None:
        self.first, self.extra, self.kept = first, extra, kept
        self.samples = [*first.samples, *(extra.samples[index] for index in kept)]

    def image(self, index: int) -> Pixels:
        """As `ImageCache.image`."""
        extra = index - len(self.first.samples)
        return self.first.image(index) if extra < 0 else self.extra.image(self.kept[extra])


def _length(sizes: Sizes, channels: int) -> int:
    """Bytes of an image and its center."""
    return math.prod(sizes[0]) * channels + (math.prod(sizes[1]) * 3 if sizes[1] else 0)


def prepare(
    samples: Sequence[Sample],
    size: Size | Callable[[Size], Sizes],
    folder: Path = CACHE,
    *,
    masks: bool = True,
) -> ImageCache:
    """Every image, and mask if asked, decoded once for all runs, with the whole frame kept.

    size: (width, height) of all of them; or what gives, for the (width, height) of an original, the one to keep it at
    and that of its center, the middle of the image (`transforms.CENTER`) at a finer resolution, or None.

    UserError that names the unreadable files, or the folder when it cannot be written or has no room.
    """
    samples, channels = tuple(samples), 4 if masks else 3
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = _digests([file for sample in samples for file in _files(sample, masks)], folder / "hashes.json")
        hashes = [[digests[file] for file in _files(sample, masks)] for sample in samples]
        sizes = tuple((size, None) for _ in samples)
        if callable(size):
            headers = _each(image_size, [sample.image for sample in samples], "reading sizes")
            sizes = tuple(map(size, headers))
        key = hashlib.sha256(json.dumps([VERSION, channels, sizes, hashes]).encode())
        path = folder / f"v{VERSION}-{key.hexdigest()[:16]}.npy"
        length = sum(_length(each, channels) for each in sizes)
        if not _is_whole(path, length):
            busy = f"{folder}: waiting for another process that prepares images there"
            with locked(folder / "lock", busy, wait=True):
                if not _is_whole(path, length):  # another process may have built it meanwhile
                    _build(path, length, samples, sizes, channels)
        return ImageCache(samples, path, sizes, channels, tuple(each[0] for each in hashes))
    except OSError as error:
        raise UserError(
            f"{folder}: the prepared images cannot be written there ({error}); choose --cache DIR"
        ) from error


def load_image(path: Path, sizes: Sizes) -> Pixels:
    """An image as a cache keeps it: uint8 [height, width, 3], with its center where `sizes` has one. Decoded once.

    UserError as of `utils.data.images.read_image`.
    """
    size, center = sizes
    if center is None:
        return read_image(path, size)
    enlarged = (math.ceil(center[0] / CENTER[2]), math.ceil(center[1] / CENTER[3]))
    image = decode_image(path, (max(size[0], enlarged[0]), max(size[1], enlarged[1])))
    return resized(image, size), take(image, CENTER, center)


def _each(function: Callable[[Any], Any], items: Sequence[Any], description: str) -> Iterator[Any]:
    """As `attempts`; UserErrors end it after the last item, as one that tells the first of them."""
    faults = []
    for result in attempts(function, items, description):
        if isinstance(result, UserError):
            faults.append(str(result))
        else:
            yield result
    if faults:
        more = f" (and {len(faults) - 3} more files; see python -m utils.data.check FOLDER)" if len(faults) > 3 else ""
        raise UserError("; ".join(faults[:3]) + more)


def _files(sample: Sample, masks: bool) -> list[Path]:
    return [sample.image, sample.mask] if masks and sample.mask else [sample.image]


def _digests(files: Sequence[Path], index: Path) -> dict[Path, str]:
    """SHA-256 of each file; kept in `index` with what changes when the file does."""
    try:
        known = load_json(index)
    except (OSError, ValueError):  # not there, or damaged: all it does is to save time
        known = {}

    def digest(path: Path) -> tuple[str, str]:
        status = check_file(path).stat()
        key = f"{path.absolute()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return key, known.get(key) or sha256(path)

    found = list(_each(digest, files, "checking files"))
    if not known.keys() >= dict(found).keys():
        with suppress(OSError), written_whole(index) as file:  # a full or read-only folder may hold caches all the same
            file.write(json.dumps(known | dict(found)).encode())
    return {path: digest for path, (_, digest) in zip(files, found, strict=True)}


def _is_whole(path: Path, length: int) -> bool:
    """Whether the cache is there, with its header and length as they must be."""
    try:
        return path.is_file() and np.load(path, mmap_mode="r").shape == (length,)
    except (EOFError, ValueError):
        return False


def _build(path: Path, length: int, samples: Sequence[Sample], sizes: Sequence[Sizes], channels: int) -> None:
    """Decode the originals into the file. To be called under the folder's lock."""
    start = time.monotonic()
    _clean(path.parent)
    if shutil.disk_usage(path.parent).free < length:
        room = f"no room for the prepared images, {readable_size(length)}"
        raise UserError(f"{path.parent}: {room}; make some, or choose --cache DIR")

    def decode(item: tuple[Sample, Sizes]) -> tuple[np.ndarray, ...]:
        sample, size = item
        pixels = _with_mask(sample, size[0]) if channels == 4 else load_image(sample.image, size)
        return pixels if isinstance(pixels, tuple) else (pixels,)

    with written_whole(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (length,)})
        for parts in _each(decode, list(zip(samples, sizes, strict=True)), "decoding images"):
            for pixels in parts:
                file.write(np.ascontiguousarray(pixels))
    largest = "{}×{}".format(*max((frame for frame, _ in sizes), key=math.prod))
    what = f"{len(samples)} images at {'' if len(set(sizes)) == 1 else 'up to '}{largest}"
    total = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    where = f"{path}, {readable_size(length)}; {path.parent} holds {readable_size(total)}"
    log.info("prepared %s in %.0f s: %s", what, time.monotonic() - start, where)


def _with_mask(sample: Sample, size: Size) -> np.ndarray:
    """The image at `size`, and its mask or zeros: uint8 [height, width, 4]."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    if sample.mask and (fault := pair_fault(read_frame(sample.image), read_frame(sample.mask))):
        raise UserError(f"{sample.mask}: {fault}")
    pixels[..., :3] = read_image(sample.image, size)
    if sample.mask:
        pixels[..., 3] = read_mask(sample.mask, size)
    return pixels


def _clean(folder: Path) -> None:
    """Remove caches of other versions, and what builds left that were interrupted. Under the folder's lock."""
    for path in folder.iterdir():
        ours = re.fullmatch(r"v(\d+)-[0-9a-f]{16}\.npy(\.\d+\.partial)?", path.name)
        if ours and (ours[1] != str(VERSION) or ours[2]):
            with suppress(OSError):  # on Windows another process may still use it
                path.unlink()
