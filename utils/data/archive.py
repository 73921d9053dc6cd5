"""Unpacking zip archives that come from elsewhere: nothing outside the folder, nothing half written or overwritten."""

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from utils import UserError
from utils.files import written_whole
from utils.logger import progress

BLOCK = 1 << 20
LARGEST_RATIO = 50  # of unpacked to packed bytes in one archive
LARGEST_TOTAL = 20 << 30  # bytes unpacked from one archive
MOST_FILES = 20_000
LONGEST_NAME = 200  # characters, with its folders
_NAME = re.compile(r"\w(?:[\w .()+-]*[\w)])?", re.ASCII)  # what every system takes as the name of a file
_LITTER = re.compile(r"(?:.*/)?(?:__MACOSX/.*|\.DS_Store|\._[^/]*|Thumbs\.db)")


def extract(archive: Path, folder: Path) -> int:
    """Unpack a zip archive into `folder`; returns how many files were written.

    Files at the archive's top, outside any folder, go with everything else into `folder`/<name of the archive up to
    ".zip">. A file that is there with the same length and CRC is left alone. Each one is whole under its name or not
    there at all; what a kill left of one that was half written is removed. Before the first is written, all names and
    lengths, the free space and the files that are there are checked.

    Raises UserError naming archive and entry: damaged, encrypted or compressed by other means than deflate; a path
    that leaves the folder or that some system does not take; a link; a name twice, or both a file's and a folder's;
    more bytes than the headers say, than LARGEST_RATIO or LARGEST_TOTAL allow, or than the disk has room for; another
    file there under that name or in the place of a folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [e for e in opened.infolist() if not e.is_dir() and not _LITTER.fullmatch(e.filename)]
            _check_entries(archive, entries)
            if any("/" not in entry.filename for entry in entries):
                folder = folder / archive.name.partition(".zip")[0]
            pending = _not_there(archive, entries, folder)
            _remove_half_written({folder / entry.filename for entry in pending})
            check_room(folder, sum(entry.file_size for entry in pending))
            for entry in progress(pending, f"{archive.name}: files"):
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, written_whole(target) as file:
                    _copy(source, file, entry)
            return len(pending)
    except (zipfile.BadZipFile, zlib.error, EOFError, IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{archive}: damaged, or no zip archive ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked into {folder} ({error})") from error


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, a BLOCK at a time."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def check_room(folder: Path, needed: int, where: str = "") -> None:
    """UserError, begun with `where`, when the disk of `folder` has not `needed` bytes free; it may not be there yet."""
    folder = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{readable_size(needed)} needed in {folder}, {readable_size(free)} free"
        raise UserError(f"{where}{sizes}; make room there or choose another folder (--data DIR)")


def readable_size(count: int) -> str:
    """A count of bytes as "5.8 GB"."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"


def _check_entries(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """UserError for what no archive of ours has in it."""
    seen: set[str] = set()
    names = {entry.orig_filename.lower() for entry in entries}
    for entry in entries:
        name = entry.orig_filename
        well_formed = len(name) <= LONGEST_NAME and all(map(_NAME.fullmatch, name.split("/")))
        if not well_formed or name.lower().endswith(".partial"):
            fault = "its path is absolute, leaves the folder, or is not one that every system takes"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            fault = "it is a link or a device, not a file"
        elif entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fault = "it is encrypted, or compressed by other means than deflate"
        elif name.lower() in seen:
            fault = "its name is there twice"
        elif not names.isdisjoint(map(str, PurePosixPath(name.lower()).parents)):
            fault = "its folder is a file of the same archive"
        else:
            seen.add(name.lower())
            continue
        raise UserError(f"{archive}: entry {name!r}: {fault}; nothing was unpacked, get another copy")
    total, limit = sum(entry.file_size for entry in entries), LARGEST_RATIO * archive.stat().st_size
    if len(entries) > MOST_FILES or total > min(limit, LARGEST_TOTAL):
        what = f"{len(entries)} files of {readable_size(total)} in {readable_size(archive.stat().st_size)}"
        raise UserError(f"{archive}: {what} are more than is plausible; nothing was unpacked, get another copy")


def _not_there(archive: Path, entries: Sequence[zipfile.ZipInfo], folder: Path) -> list[zipfile.ZipInfo]:
    """The entries to write. UserError where another file, or one with other content, has an entry's name."""
    pending, others = [], []
    for entry in entries:
        target = folder / entry.filename
        there = next(path for path in (target, *target.parents) if os.path.lexists(path))  # a link to nothing too
        if there != target and there.is_dir():
            pending.append(entry)
        elif not (target.is_file() and target.stat().st_size == entry.file_size and _crc(target) == entry.CRC):
            others.append(there)
    others = list(dict.fromkeys(others))
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UserError(
            f"{others[0]}{more}: there with other content than in {archive.name}; nothing was unpacked, "
            "move it away and give the same command again"
        )
    return pending


def _remove_half_written(targets: set[Path]) -> None:
    """What a process that was killed left of `targets` under the names of `written_whole`."""
    for folder in {target.parent for target in targets}:
        for left in folder.glob("*.partial"):
            if folder / re.sub(r"\.\d+\.partial$", "", left.name) in targets:
                left.unlink()


def _crc(path: Path) -> int:
    crc = 0
    for block in blocks(path):
        crc = zlib.crc32(block, crc)
    return crc


def _copy(source: BinaryIO, target: BinaryIO, entry: zipfile.ZipInfo) -> None:
    """Copy as many bytes as the headers say; BadZipFile when more or fewer come (zipfile checks the CRC)."""
    left = entry.file_size
    while left >= 0 and (block := source.read(BLOCK)):
        left -= len(block)
        target.write(block)
    if left:
        raise zipfile.BadZipFile(f"{entry.filename!r} has another length than the headers say")
