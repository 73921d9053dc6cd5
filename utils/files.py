"""Files: written whole or not at all, checked, hashed, locked; their content quoted in messages."""

import csv
import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from utils import UserError
from utils.logger import log

LFS_POINTER = b"version https://git-lfs"  # how the file begins that Git leaves where Git LFS is not installed


def check_file(path: str | Path) -> Path:
    """The path when a regular file lies there (reading a pipe waits for ever, a device never ends), else UserError."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError)
        reason = "no such file" if absent else f"not readable ({getattr(error, 'strerror', None) or error})"
        raise UserError(f"{path}: {reason}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not readable ({'a folder' if stat.S_ISDIR(mode) else 'no regular file'})")
    return Path(path)


def quoted(value: Any, longest: int = 120) -> str:
    """A value from a file as a message may quote it: on one line, printable, and at most so many characters long."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def listed(names: Iterable[Any], most: int = 3, longest: int = 120) -> str:
    """Names as a message may list them, each `quoted`: "a, b, c and 4 more"."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(quoted(name, longest) for name in names[:most]) + more


def readable_size(count: int) -> str:
    """A count of bytes as "5.8 GB"."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. OSError or ValueError when there is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


@contextmanager
def reading(path: Path | str, way_out: str = "copy the run again, or move its folder away") -> Iterator[None]:
    """Around the reading of what a run wrote: what damaged or other content raises becomes one line that names it."""
    try:
        yield
    except (
        ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError,
        csv.Error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = f"no {error}" if isinstance(error, KeyError) else quoted(" ".join(str(error).split()))
        raise UserError(f"{path}: damaged, or of another version ({reason}); {way_out}") from error


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """One process at a time: holds the lock file `path`, which the system frees when the process ends, however it ends.

    When another process holds it: UserError(busy), or with `wait` that line in the log, and its turn. Within a process
    it may be taken again (a notebook's cell that is run twice). OSError when the file cannot be made.
    """
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(busy) from None
        log.info(busy)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is at `path` whole or not at all: temporary name, flush to disk, rename.

    UserError when its folder is not there.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two processes may write one file
    if not path.parent.is_dir():
        raise UserError(
            f"{path.parent} is no longer there: {path.name} could not be written; put it back, or start again"
        )
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # those of writing to an open file name none
        raise
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits; read in pieces. UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with check_file(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    return digest.hexdigest()
