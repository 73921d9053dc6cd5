"""Prepared images: each original is decoded once, at the wanted size, into a file that later runs map into memory.

A cache is named after what it is made of: the SHA-256 of the originals' bytes (images, and masks where they are kept),
the size, and the version of this pipeline. So data that is moved or copied finds its cache again, and other content
never does. `hashes.json` beside the caches spares files the hashing whose path, size, inode, mtime and ctime are the
same, unless they changed within two seconds before: clocks of file systems tick coarsely.

A cache is a NumPy file: [N, height, width, channels], or with a finer center [N, bytes], each row an image and its
center. It has its name when it is whole. One process at a time builds in a folder; others wait.
"""

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError
from utils.config import CACHE
from utils.data.images import decode_image, pair_fault, read_frame, read_image, read_mask, resized
from utils.data.isic import Sample
from utils.data.parallel import attempts
from utils.data.transforms import CENTER, Pixels, take
from utils.files import check_file, listed, load_json, locked, readable_size, sha256, written_whole
from utils.logger import log

Size = tuple[int, int]  # (width, height)
VERSION = 4  # raise it when other pixels are stored, or the layout changes
SETTLED = 2 * 10**9  # nanoseconds after which a file's times tell whether it has changed since


@dataclass(frozen=True)
class ImageCache:
    """Decoded images of one split. The file stays open with the object, and so in use though it be deleted (POSIX)."""

    samples: Sequence[Sample]
    path: Path
    sizes: tuple[Size, ...] = ()  # (width, height) of image and center, where there is a center
    digests: Sequence[str] = field(default=(), repr=False, compare=False)  # SHA-256 of each original image
    _levels: tuple[np.ndarray, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = np.load(self.path, mmap_mode="r")
        levels, start = [] if self.sizes else [rows], 0
        for width, height in self.sizes:
            end = start + width * height * 3
            levels.append(rows[:, start:end].reshape(-1, height, width, 3))
            start = end
        object.__setattr__(self, "_levels", tuple(levels))

    def __reduce__(self) -> tuple:
        return ImageCache, (self.samples, self.path, self.sizes)  # a worker process opens the file itself

    @property
    def size(self) -> Size:
        """(width, height) of the images."""
        height, width = self.pixels().shape[1:3]
        return width, height

    @property
    def center(self) -> Size | None:
        """(width, height) of their centers, where there are any."""
        return self.sizes[1] if self.sizes else None

    def pixels(self) -> np.ndarray:
        """uint8 [N, height, width, 3], or 4 with the mask (0 or 1) after RGB; read-only, in memory once for all."""
        return self._levels[0]

    def image(self, index: int) -> Pixels:
        """One of them, with its center where there is one: what `utils.data.transforms.take` takes patches from."""
        levels = tuple(level[index] for level in self._levels)
        return levels if len(levels) > 1 else levels[0]


def prepare(
    samples: Sequence[Sample], size: Size, folder: Path = CACHE, *, masks: bool = True, center: Size | None = None
) -> ImageCache:
    """Every image, and mask if asked, decoded at `size` = (width, height) with the whole frame kept, once for all runs.

    center: (width, height) at which the middle of the image (`transforms.CENTER`) is kept besides, without masks.

    UserError that names the unreadable files, or the folder when it cannot be written or has no room.
    """
    samples = tuple(samples)
    sizes = (size, center) if center else ()
    shape = (3 * sum(map(math.prod, sizes)),) if center else (size[1], size[0], 4 if masks else 3)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        originals = _hashes(samples, masks, folder / "hashes.json")
        hashes = [[originals[file][-1] for file in _files(sample, masks)] for sample in samples]
        shape = (len(samples), *shape)
        key = hashlib.sha256(json.dumps([VERSION, shape, hashes, *sizes]).encode())
        path = folder / f"v{VERSION}-{key.hexdigest()[:16]}.npy"
        if not _is_whole(path, shape):
            busy = f"{folder}: waiting for another process that prepares images there"
            with locked(folder / "lock", busy, wait=True):
                if not _is_whole(path, shape):  # another process may have built it meanwhile
                    _build(path, shape, samples, originals, size, center)
        return ImageCache(samples, path, sizes, tuple(each[0] for each in hashes))
    except OSError as error:
        raise UserError(
            f"{folder}: the prepared images cannot be written there ({error}); choose --cache DIR"
        ) from error


def _each(function: Callable[[Any], Any], items: Sequence[Any], description: str) -> Iterator[Any]:
    """As `attempts`; UserErrors end it after the last item, as one that names the first files with each fault."""
    faults: dict[str, list[str]] = {}
    for result in attempts(function, items, description):
        if isinstance(result, UserError):
            file, _, reason = str(result).partition(": ")
            faults.setdefault(reason, []).append(file)
        else:
            yield result
    if faults:
        lines = [f"{listed(files, longest=1000)}: {reason}" for reason, files in faults.items()]
        rest = sum(map(len, list(faults.values())[4:]))
        more = f" (and {rest} more files; see python -m utils.data.check FOLDER)" if rest else ""
        raise UserError("; ".join(lines[:4]) + more)


def _files(sample: Sample, masks: bool) -> list[Path]:
    return [sample.image, sample.mask] if masks and sample.mask else [sample.image]


def _identity(path: Path) -> list[int]:
    """What tells an unchanged file. UserError when there is none."""
    status = check_file(path).stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _hashes(samples: Sequence[Sample], masks: bool, index: Path) -> dict[Path, list]:
    """[size, inode, mtime, ctime, SHA-256] of every original; kept in `index`, so that unchanged files are not read."""
    files = [path for sample in samples for path in _files(sample, masks)]
    try:
        known = load_json(index)
    except (OSError, ValueError):  # not there, or damaged: all it does is to save time
        known = {}

    def entry(path: Path) -> list:
        identity = _identity(path)  # taken before the content: a change from here on will show
        there = known.get(str(path.absolute()))
        return there if isinstance(there, list) and there[:-1] == identity else [*identity, sha256(path)]

    settled = time.time_ns() - SETTLED
    found = dict(zip(files, _each(entry, files, "checking files"), strict=True))
    new = {str(path.absolute()): entry for path, entry in found.items() if max(entry[2:4]) < settled}
    if any(known.get(path) != entry for path, entry in new.items()):
        known = {path: entry for path, entry in known.items() if Path(path).exists()}
        with suppress(OSError), written_whole(index) as file:  # a full or read-only folder may hold caches all the same
            file.write(json.dumps(known | new).encode())
    return found


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the cache is there, with its header and length as they must be."""
    try:
        return path.is_file() and np.load(path, mmap_mode="r").shape == shape
    except (EOFError, ValueError):
        return False


def _build(
    path: Path,
    shape: tuple[int, ...],
    samples: Sequence[Sample],
    originals: dict[Path, list],
    size: Size,
    center: Size | None,
) -> None:
    """Decode the originals into the file. To be called under the folder's lock."""
    start, needed = time.monotonic(), math.prod(shape)
    _clean(path.parent)
    if shutil.disk_usage(path.parent).free < needed:
        room = f"no room for the prepared images, {readable_size(needed)}"
        raise UserError(f"{path.parent}: {room}; make some, or choose --cache DIR")

    def decode(sample: Sample) -> np.ndarray:
        pixels = _with_center(sample.image, size, center) if center else _pixels(sample, size, shape[-1] == 4)
        for file in _files(sample, shape[-1] == 4):
            if _identity(file) != originals[file][:-1]:
                raise UserError(f"{file}: changed while it was read; start again when it is whole")
        return pixels

    with written_whole(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels in _each(decode, samples, "decoding images"):
            file.write(pixels)
    middle = f", their middle at {center[0]}×{center[1]}," if center else ""
    what = f"{len(samples)} images at {size[0]}×{size[1]}{middle} in {time.monotonic() - start:.0f} s"
    total = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    sizes = f"{readable_size(needed)}; {path.parent} holds {readable_size(total)}"
    log.info("prepared %s: %s, %s", what, path, sizes)


def _pixels(sample: Sample, size: Size, masks: bool) -> np.ndarray:
    """The image at `size`, and with `masks` its mask or zeros: uint8 [height, width, 3 or 4]."""
    pixels = np.zeros((size[1], size[0], 4 if masks else 3), np.uint8)
    if masks and sample.mask and (fault := pair_fault(read_frame(sample.image), read_frame(sample.mask))):
        raise UserError(f"{sample.mask}: {fault}")
    pixels[..., :3] = read_image(sample.image, size)
    if masks and sample.mask:
        pixels[..., 3] = read_mask(sample.mask, size)
    return pixels


def _with_center(path: Path, size: Size, center: Size) -> np.ndarray:
    """The image at `size` and its middle at `center`, one after the other: uint8 [bytes]. Decoded once."""
    enlarged = (math.ceil(center[0] / CENTER[2]), math.ceil(center[1] / CENTER[3]))
    image = decode_image(path, (max(size[0], enlarged[0]), max(size[1], enlarged[1])))
    return np.concatenate([resized(image, size).ravel(), take(image, CENTER, center).ravel()])


def _clean(folder: Path) -> None:
    """Remove caches of other versions, and what builds left that were interrupted. Under the folder's lock."""
    for path in folder.iterdir():
        ours = re.fullmatch(r"v(\d+)-[0-9a-f]{16}(\.npy|(\.npy)?(\.\d+)?\.partial)", path.name)
        if not ours or ours.groups()[:2] == (str(VERSION), ".npy"):
            continue
        with suppress(OSError):  # on Windows another process may still use it
            path.unlink()
