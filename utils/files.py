"""Files: written whole or not at all, checked, hashed, locked; their content quoted in messages."""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from utils import UserError


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


def quoted(value: Any, form: Callable[[Any], str] = repr) -> str:
    """A value from a file as a message may quote it: on one line and not too long."""
    text = " ".join(form(value).split())
    return text if len(text) <= 120 else f"{text[:119]}…"


MAX_DEPTH = 50  # of JSON; Python's own limit depends on its version


def is_one_line(text: str) -> bool:
    """Whether it can stand in a message: no line break or control character."""
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. OSError or ValueError when there is none, or it nests too deeply to be worked with."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")  # reading a pipe waits for ever
    text = path.read_text(encoding="utf-8")
    brackets = re.sub(r'"(?:\\.|[^"\\])*"', "", text)  # but for those in strings
    if max(accumulate((sign in "[{") - (sign in "]}") for sign in brackets), default=0) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's errors within name the file; those of writing to an open one do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


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
        partial.unlink(missing_ok=True)
        with _named(path), partial.open("xb") as file:  # through no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(folder: Path) -> None:
    """The names in a folder survive a power cut, where the system can promise it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:  # some network file systems cannot
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


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
