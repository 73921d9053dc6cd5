"""Photographs of one's own: which files they are, and what their outputs are called."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from utils import UserError
from utils.data.own import SUFFIXES
from utils.files import check_file, listed
from utils.logger import log

UNREAD = (".heic", ".heif", ".avif", ".gif", ".dcm")  # photographs too: their reader says why not
# Ends of names of files that lie among photographs: those of the challenge, and what is written here.
NO_PHOTOGRAPHS = ("_segmentation", "_superpixels", "_probability", "_overlay", "_saliency")


@dataclass(frozen=True)
class Photograph:
    """A file, and the name of its outputs: a path below the output folder, without an ending."""

    file: Path
    name: str


def find_photographs(
    paths: Sequence[Path], output: Path, recursive: bool = False, taken: Mapping[str, str] | None = None
) -> tuple[list[Photograph], list[str]]:
    """The files among `paths` and the photographs in the folders among them; then what is passed over, with reasons.

    output: not looked into. recursive: folders in folders too; else the log tells that there are any. taken: names of
    earlier outputs by absolute file. UserError for a path that does not exist, and when no photograph is found.
    """
    found: dict[str, tuple[Path, Path]] = {}  # by the real path; other than Path.resolve, it takes links in a circle
    skipped = []
    for top in paths:
        if not top.is_dir():
            found.setdefault(os.path.realpath(check_file(top)), (top, top.parent))
            continue
        inside = sorted(top.rglob("*") if recursive else top.iterdir())
        if top.resolve() in output.resolve().parents:
            inside = [path for path in inside if output.resolve() not in Path(os.path.realpath(path)).parents]
        folders = sum(path.is_dir() for path in inside)
        if folders and not recursive:
            log.info("%s: %d folders in it are not looked into; --recursive does", top, folders)
        for file in inside:
            if file.is_dir():
                continue
            if reason := _passed_over(file.relative_to(top)):
                skipped.append(f"{file.relative_to(top)} ({reason})")
            else:
                found.setdefault(os.path.realpath(file), (file, top))
    if not found:
        skips = f"; skipped: {listed(skipped, 10)}" if skipped else ""
        raise UserError(f"{listed(map(str, paths))}: no photograph there ({', '.join(SUFFIXES)}){skips}")
    return _named(list(found.values()), taken or {}), skipped


def _passed_over(path: Path) -> str:
    """Why a file in a folder is taken for no photograph; "" where it may be one."""
    if any(part.startswith(".") for part in path.parts):
        return "hidden"
    if path.stem.endswith(NO_PHOTOGRAPHS):
        return "an output"
    return "" if path.suffix.lower() in SUFFIXES + UNREAD else "no image"


def _named(found: Sequence[tuple[Path, Path]], taken: Mapping[str, str]) -> list[Photograph]:
    """Names that differ, also where capitals do not count: that of earlier outputs, else with a number if need be."""
    names, used = dict(taken), {name.lower() for name in taken.values()}
    for file, top in found:
        if str(file.absolute()) not in names:
            stem = file.relative_to(top).with_suffix("").as_posix()
            forms = chain([stem], (f"{stem}-{number}" for number in count(2)))
            name = names[str(file.absolute())] = next(form for form in forms if form.lower() not in used)
            used.add(name.lower())
    return [Photograph(file, names[str(file.absolute())]) for file, _ in found]
