"""Prepared images: each original is decoded once, at the wanted size, into a file that later runs map into memory.

A cache is named after what it is made of: the SHA-256 of the originals' bytes (images, and masks where they are kept),
the size, and the version of this pipeline. So data that is moved or copied finds its cache again, and other content
never does. `hashes.json` beside the caches spares unchanged files the hashing: those whose path, size, inode, mtime and
ctime are the same. Every write moves ctime on and no program sets it back (Windows has no such time). Clocks of file
systems tick coarsely, so what changed within two seconds before it was hashed is hashed again the next time.

A cache is a NumPy file: [N, height, width, channels], or with a finer center [N, bytes], each row an image and its
center. After the pixels come a CRC-32 of every image and the hash of the name. An interrupted build leaves it behind
unfinished, as `.partial`, and the next one goes on there. One process at a time builds in a folder; others wait.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils import UserError
from utils.config import CACHE
from utils.data.images import decode_image, image_size, pair_fault, read_image, read_mask, resized
from utils.data.isic import Sample
from utils.data.parallel import attempts
from utils.data.transforms import CENTER, Pixels, take
from utils.files import check_file, load_json, locked, readable_size, sha256, written_whole
from utils.logger import log, progress

Size = tuple[int, int]  # (width, height)
VERSION = 3  # raise it when other pixels are stored, or the layout changes
SETTLED = 2 * 10**9  # nanoseconds after which a file's times tell whether it has changed since
LEFTOVER = 24 * 3600  # seconds after which nobody is expected to go on with an interrupted build


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

    A cache that is there is used when header, length and all checksums are right (0.3 s a GB), else made anew.
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
        layout = _Layout(shape, key.digest())
        path = folder / f"v{VERSION}-{key.hexdigest()[:16]}.npy"
        if layout.check(path)[1]:
            busy = f"{folder}: waiting for another process that prepares images there"
            with locked(folder / "lock", busy, wait=True):
                if doubt := layout.check(path)[1]:  # else another process has built it meanwhile
                    if path.exists():
                        log.warning("%s: %s; made anew", path, doubt)
                    _build(path, layout, samples, originals, size, center)
        return ImageCache(samples, path, sizes, tuple(each[0] for each in hashes))
    except OSError as error:
        raise UserError(
            f"{folder}: the prepared images cannot be written there ({error}); choose --cache DIR"
        ) from error


def _each(function: Callable[[Any], Any], items: Sequence[Any], description: str) -> Iterator[Any]:
    """As `attempts`; UserErrors end it after the last item, not before, as one that names the first five files."""
    faults = []
    for result in attempts(function, items, description):
        if isinstance(result, UserError):
            faults.append(str(result))
        else:
            yield result
    if faults:
        more = f" (and {len(faults) - 5} more files; see python -m utils.data.check)" if len(faults) > 5 else ""
        raise UserError("; ".join(faults[:5]) + more)


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


@dataclass(frozen=True)
class _Layout:
    """Where things are in a file of uint8 `shape`, its first axis the images: header, pixels, checksums, key."""

    shape: tuple[int, ...]
    key: bytes

    @cached_property
    def header(self) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return file.getvalue()

    def image(self, index: int) -> int:
        return len(self.header) + index * math.prod(self.shape[1:])

    def checksum(self, index: int) -> int:
        return self.image(self.shape[0]) + 4 * index

    @property
    def length(self) -> int:
        return self.checksum(self.shape[0]) + len(self.key)

    def write(self, file: BinaryIO, start: int, images: Iterable[np.ndarray]) -> None:
        """All but the images before `start`. Each checksum comes after its pixels: none without them."""
        file.write(self.header)
        file.truncate(self.length)
        file.seek(self.checksum(self.shape[0]))
        file.write(self.key)
        for index, pixels in enumerate(images, start):
            file.seek(self.image(index))
            file.write(pixels)
            file.seek(self.checksum(index))
            file.write(zlib.crc32(pixels).to_bytes(4, "little"))

    def check(self, path: Path) -> tuple[int, str]:
        """How many images from the first on are as they were written; why that is not a whole cache, else ""."""
        count, size = self.shape[0], math.prod(self.shape[1:])
        length = path.stat().st_size if path.is_file() else 0
        if length != self.length:
            return 0, f"{length} bytes long, not {self.length}"
        with path.open("rb") as file:
            if file.read(len(self.header)) != self.header:
                return 0, "its header is not right"
            file.seek(self.checksum(0))
            checksums = np.frombuffer(file.read(4 * count), "<u4")
            if file.read() != self.key:
                return 0, "made of other files or by another version"
            file.seek(self.image(0))
            for index, checksum in enumerate(progress(checksums, "checking prepared images")):
                if zlib.crc32(file.read(size)) != checksum:
                    return index, f"the checksum of image {index + 1} is wrong"
        return count, ""


def _build(
    path: Path, layout: _Layout, samples: Sequence[Sample], originals: dict[Path, list], size: Size, center: Size | None
) -> None:
    """Decode what an interrupted build has not, and give the whole its name. To be called under the folder's lock."""
    count, masks, start = layout.shape[0], layout.shape[-1] == 4, time.monotonic()
    partial = path.with_suffix(".partial")
    _clean(path.parent, keep=partial)
    done, _ = layout.check(partial)
    if done:
        log.info("going on with %d of %d images that an interrupted run has prepared", done, count)

    def decode(sample: Sample) -> np.ndarray:
        pixels = _with_center(sample.image, size, center) if center else _pixels(sample, size, masks)
        for file in _files(sample, masks):
            if _identity(file) != originals[file][:-1]:
                raise UserError(f"{file}: changed while it was read; start again when it is whole")
        return pixels

    try:
        if shutil.disk_usage(path.parent).free < layout.image(count) - layout.image(done):
            room = f"no room for the prepared images, {readable_size(layout.length)}"
            raise UserError(f"{path.parent}: {room}; make some, or choose --cache DIR")
        with partial.open("r+b" if done else "w+b") as file:
            layout.write(file, done, _each(decode, samples[done:], "decoding images"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (UserError, OSError) as error:  # after a UserError other files will make another cache
        if isinstance(error, UserError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            partial.unlink(missing_ok=True)
        raise
    what = " and ".join(f"{width}×{height}" for width, height in filter(None, (size, center)))
    total = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    sizes = f"{readable_size(layout.length)}; {path.parent} holds {readable_size(total)}"
    log.info("prepared %d images at %s in %.0f s: %s, %s", count, what, time.monotonic() - start, path, sizes)


def _pixels(sample: Sample, size: Size, masks: bool) -> np.ndarray:
    """The image at `size`, and with `masks` its mask or zeros: uint8 [height, width, 3 or 4]."""
    pixels = np.zeros((size[1], size[0], 4 if masks else 3), np.uint8)
    if masks and sample.mask and (fault := pair_fault(image_size(sample.image), image_size(sample.mask))):
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


def _clean(folder: Path, keep: Path) -> None:
    """Remove caches of other versions, and what builds left that were interrupted long ago. Under the folder's lock."""
    old = time.time() - LEFTOVER
    gone = [path for path in folder.glob("v*-*.partial") if path != keep and path.stat().st_mtime < old]
    gone += [path for path in folder.glob("v*-*.npy") if not path.name.startswith(f"v{VERSION}-")]
    for path in gone:
        with suppress(OSError):  # on Windows another process may still use it
            path.unlink()
