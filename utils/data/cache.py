"""Prepared images: each original is decoded once, at the wanted size, into a file that later runs map into memory.

A cache is named after what it is made of: the SHA-256 of the originals' bytes (images, and masks where they are kept),
the size, and the version of this pipeline. So data that is moved or copied finds its cache again, and other content
never does. `hashes.json` beside the caches spares unchanged files the hashing. A file counts as unchanged while path,
size, mtime, ctime and inode are the same. On Linux and macOS every write moves ctime on and no program sets it back: a
file changed in place is noticed although its size and mtime are as before. On Windows, which has no such time, exactly
that is not. A file that changed within the two seconds before it was hashed is hashed again the next time, since clocks
of file systems tick coarsely.

A cache is a NumPy file that `np.load` reads too: [N, height, width, channels], or with a finer center [N, bytes], each
row an image and its center. After the pixels come a CRC-32 of every image and the hash of the
name. An interrupted build leaves it behind unfinished, as `.partial`, and the next one goes on there. One process at a
time builds in a folder. Others wait for its lock, which the system frees when it dies, and use what it has built.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from utils import UserError
from utils.data.images import MIN_SIDE, decode_image, image_size, read_image, read_mask, resized
from utils.data.isic import Sample
from utils.data.samples import Samples
from utils.data.transforms import CENTER, Pixels, take
from utils.device import cores
from utils.files import sha256
from utils.logger import log, progress

Item, Result = TypeVar("Item"), TypeVar("Result")
CACHE = Path(__file__).resolve().parents[2] / "Data" / "cache"
STORE_VERSION = 3  # raise it when other pixels are stored, or the layout changes
SETTLED = 2 * 10**9  # nanoseconds after which a file's times tell whether it has changed since
LEFTOVER = 24 * 3600  # seconds after which nobody is expected to go on with an interrupted build
OURS = re.compile(r"(?:v(?P<version>\d+)-)?[0-9a-f]{16}(?:\.\d+)?\.(?:npy|partial)|(?:hashes|copies)\.\d+\.partial")


@dataclass(frozen=True)
class ImageCache:
    """Decoded images of one split. The file stays open with the object, and so in use though it be deleted (POSIX)."""

    samples: Sequence[Sample]
    path: Path
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of image and center, where there is a center
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
    def size(self) -> tuple[int, int]:
        """(width, height) of the images."""
        height, width = self.pixels().shape[1:3]
        return width, height

    @property
    def center(self) -> tuple[int, int] | None:
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
    samples: Sequence[Sample],
    size: tuple[int, int],
    folder: Path = CACHE,
    *,
    masks: bool = True,
    center: tuple[int, int] | None = None,
) -> ImageCache:
    """Every image, and mask if asked, decoded at `size` = (width, height) with the whole frame kept, once for all runs.

    center: (width, height) at which the middle of the image (`utils.data.transforms.CENTER`) is kept besides, without masks.

    A cache that is there is used when header, length and all checksums are right, else made anew. Measured on one core:
    0.1 s for 2,000 images at 168×168 with masks (226 MB), 0.4 to 0.7 s for 1.9 GB that is in the page cache; from disk
    it is the reading that the first epoch is spared. Hashing originals takes 0.5 s a GB beside reading them.

    Raises UserError that names the unreadable files, or the folder when it cannot be written or has no room.
    """
    samples = tuple(samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        originals = _hashes(samples, masks, folder / "hashes.json")
        sizes = (size, center) if center else ()
        shape = (size[1], size[0], 4 if masks else 3) if not center else (3 * sum(map(math.prod, sizes)),)
        shape = (len(samples), *shape)
        hashes = [[originals[file][-1] for file in _files(sample, masks)] for sample in samples]
        key = hashlib.sha256(json.dumps([STORE_VERSION, shape, hashes, *sizes]).encode())
        layout = _Layout(shape, key.digest())
        path = folder / f"v{STORE_VERSION}-{key.hexdigest()[:16]}.npy"
        if layout.check(path)[1]:
            with _alone(folder):
                if doubt := layout.check(path)[1]:  # else another process has built it meanwhile
                    if path.exists():
                        log.warning("%s: %s; made anew", path, doubt)
                    _build(path, layout, samples, originals, size, center)
        return ImageCache(Samples(samples), path, sizes, tuple(each[0] for each in hashes))
    except OSError as error:
        raise UserError(
            f"{folder}: the prepared images cannot be written there ({error}); choose --cache DIR"
        ) from error


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 32
) -> Iterator[Result]:
    """As `pool.map`, but takes items only as they are needed: at most `ahead` are worked on or wait for use."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _each(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """`function` of each item, in order, on all cores: decoders, resizing and checksums release the interpreter lock.

    A UserError ends it after the last item, not before, as one that names the first five files.
    """

    def attempt(item: Item) -> Result | UserError:
        try:
            return function(item)
        except UserError as error:
            return error

    faults = []
    with ThreadPoolExecutor(cores()) as pool:
        for result in progress(in_order(pool, attempt, items), description, len(items)):
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
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {'no such file' if error.errno == errno.ENOENT else error.strerror}") from error
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _hashes(samples: Sequence[Sample], masks: bool, index: Path) -> dict[Path, list]:
    """[size, inode, mtime, ctime, SHA-256] of every original; kept in `index`, so that unchanged files are not read."""
    files = [path for sample in samples for path in _files(sample, masks)]
    known = read_index(index)

    def entry(path: Path) -> list:
        identity = _identity(path)  # taken before the content: a change from here on will show
        there = known.get(str(path.absolute()))
        if isinstance(there, list) and there[:-1] == identity:
            return there
        return [*identity, sha256(path)]

    settled = time.time_ns() - SETTLED
    found = dict(zip(files, _each(entry, files, "checking files"), strict=True))
    new = {str(path.absolute()): entry for path, entry in found.items() if max(entry[2:4]) < settled}
    if any(known.get(path) != entry for path, entry in new.items()):
        write_index(index, {path: entry for path, entry in known.items() if Path(path).exists()} | new)
    return found


def read_index(index: Path) -> dict[str, Any]:
    """What `write_index` wrote; empty when it is absent or damaged, since all it does is to save time."""
    try:
        content = json.loads(index.read_text())
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}


def write_index(index: Path, content: dict[str, Any]) -> None:
    """Whole or not at all. A folder that is full or read-only may hold caches all the same, so it is no error."""
    partial = index.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        index.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(content))
            partial.replace(index)
        finally:
            partial.unlink(missing_ok=True)


def pair_fault(image: tuple[int, int], mask: tuple[int, int]) -> str:
    """Why a mask of this (width, height) is none of an image of that; "" when it may be: mirrors have resized ones."""
    sizes = "mask {}x{}, image {}x{}".format(*mask, *image)
    if min(mask) < MIN_SIDE <= min(image):
        return f"too small to be the mask of its image ({sizes}); fetch this file again"
    if mask == image[::-1] != image:
        return f"lies on its side against its image ({sizes}); turn one of them, or take the image's EXIF rotation away"
    return ""


@dataclass(frozen=True)
class _Layout:
    """Where things are in a cache of uint8 `shape`, its first axis the images: header, pixels, checksums, key."""

    shape: tuple[int, ...]
    key: bytes

    @cached_property
    def header(self) -> bytes:
        file = io.BytesIO()
        content = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, content)
        return file.getvalue()

    def image(self, index: int) -> int:
        return len(self.header) + index * math.prod(self.shape[1:])

    def checksum(self, index: int) -> int:
        return self.image(self.shape[0]) + 4 * index

    @property
    def length(self) -> int:
        return self.checksum(self.shape[0]) + len(self.key)

    def check(self, path: Path) -> tuple[int, str]:
        """How many images from the first on are as they were written; why that is not a whole cache, else ""."""
        count, size = self.shape[0], math.prod(self.shape[1:])
        if not path.is_file():
            return 0, "not there"
        if (length := path.stat().st_size) != self.length:
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
    path: Path,
    layout: _Layout,
    samples: Sequence[Sample],
    originals: dict[Path, list],
    size: tuple[int, int],
    center: tuple[int, int] | None,
) -> None:
    """Decode what an interrupted build has not, and give the whole its name. To be called under the folder's lock."""
    count, masks = layout.shape[0], layout.shape[-1] == 4
    partial = path.with_suffix(".partial")
    _clean(path.parent, keep=partial)
    done, _ = layout.check(partial)
    if done:
        log.info("going on with %d of %d images that an interrupted run has prepared", done, count)

    def decode(sample: Sample) -> np.ndarray:
        if masks and sample.mask and (fault := pair_fault(image_size(sample.image), image_size(sample.mask))):
            raise UserError(f"{sample.mask}: {fault}")
        if center:
            pixels = _with_center(sample.image, size, center)
        else:
            pixels = np.zeros(layout.shape[1:], np.uint8)
            pixels[..., :3] = read_image(sample.image, size)
            if masks and sample.mask:
                pixels[..., 3] = read_mask(sample.mask, size)
        for file in _files(sample, masks):
            if _identity(file) != originals[file][:-1]:
                raise UserError(f"{file}: changed while it was read; start again when it is whole")
        return pixels

    start = time.monotonic()
    try:
        if shutil.disk_usage(path.parent).free < layout.image(count) - layout.image(done):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with partial.open("r+b" if done else "w+b") as file:
            file.write(layout.header)
            file.truncate(layout.length)
            file.seek(layout.checksum(count))
            file.write(layout.key)
            for index, pixels in enumerate(_each(decode, samples[done:], "decoding images"), done):
                file.seek(layout.image(index))
                file.write(pixels)
                file.seek(layout.checksum(index))  # after the pixels: none without the other
                file.write(zlib.crc32(pixels).to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except UserError:  # other files will make another cache
        partial.unlink()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        partial.unlink(missing_ok=True)
        room = f"no room for the prepared images, {layout.length / 1e6:.1f} MB"
        raise UserError(f"{path.parent}: {room} ({error.strerror}); make some, or choose --cache DIR") from error
    total = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    middle = f", their middle at {center[0]}×{center[1]}," if center else ""
    what = f"{count} images at {size[0]}×{size[1]}{middle} in {time.monotonic() - start:.0f} s"
    log.info("prepared %s: %s, %.1f MB; %s holds %.1f MB", what, path, layout.length / 1e6, path.parent, total / 1e6)


def _with_center(path: Path, size: tuple[int, int], center: tuple[int, int]) -> np.ndarray:
    """The image at `size` and its middle at `center`, one after the other: uint8 [bytes]. Decoded once."""
    enlarged = (math.ceil(center[0] / CENTER[2]), math.ceil(center[1] / CENTER[3]))
    image = decode_image(path, (max(size[0], enlarged[0]), max(size[1], enlarged[1])))
    return np.concatenate([resized(image, size).ravel(), take(image, CENTER, center).ravel()])


def _clean(folder: Path, keep: Path) -> None:
    """Remove caches of other versions, and what builds left that were interrupted long ago. Under the folder's lock."""
    for path in folder.iterdir():
        if path != keep and (match := OURS.fullmatch(path.name)):
            with suppress(OSError):  # another process is done with it, or on Windows is not
                partial, foreign = path.suffix == ".partial", match["version"] != str(STORE_VERSION)
                if time.time() - path.stat().st_mtime > LEFTOVER if partial else foreign:
                    path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that ends, however it ends."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for another process that prepares images there", folder)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()
