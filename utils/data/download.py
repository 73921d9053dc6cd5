"""Fetch the challenge's data: `python -m utils.data.download`.

    python -m utils.data.download --splits train validation      # what training needs; --help tells the rest

The same command goes on where a stopped one was. A part counts as there, and is not fetched, when every id of its
split's label file has its image (or mask) and the header of each of those files can be read.
"""

import argparse
import hashlib
import shutil
import zipfile
import zlib
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from utils import UserError
from utils.data.images import image_size
from utils.data.isic import PREFIXES, SPLITS, find_files, read_labels
from utils.files import listed, locked, quoted, readable_size, written_whole
from utils.logger import log, progress, run_script
from utils.signals import StopRequested

URL = "https://isic-challenge-data.s3.amazonaws.com/2017/"
LABELS, MASKS, IMAGES = "Part3_GroundTruth.csv", "Part1_GroundTruth.zip", "Data.zip"
OFFICIAL = {  # number of images, MD5 of masks and of images, from third parties (the challenge publishes none)
    "train": (2000, "77fdbeb6fbec4139937224416b250f4c", "a14a7e622c67a358797ae59abb8a0b0c"),
    "validation": (150, "64d3e68fa2deeb8a5e89aa8dec2efd44", "8d6419d942112f709894c0d82f6c9038"),
    "test": (600, "b1742de6bd257faca3b2b21a4aa3b781", "5f6a0b5e1f2972bd1f5ea02680489f09"),
}
BLOCK = 1 << 20  # bytes read at a time
ROOM = 2.4  # free disk space for an archive and what is in it, in lengths of it; measured: photographs 2.0, masks 2.3
# After passing failures in a row, at pauses that double or that the server asks for; a certificate's do not pass.
RETRY = Retry(6, status_forcelist={408, 425, 429, *range(500, 600)}, backoff_factor=1, other=0)


def download(data: Path, splits: list[str], url: str, *, masks_only: bool, verify: bool, keep_archives: bool) -> None:
    """Bring what is not there yet of `splits` into the folder `data`; the flags' help tells what the rest means."""
    data.mkdir(parents=True, exist_ok=True)
    with locked(data / ".download.lock", f"{data}: another process downloads into it; wait, or choose --data DIR"):
        for split in splits:
            prefix, (count, *digests) = PREFIXES[split], OFFICIAL[split]
            ids = _labels(url, data / f"{prefix}_{LABELS}", count)
            for part, md5 in list(zip((MASKS, IMAGES), digests, strict=True))[: 1 if masks_only else 2]:
                archive = data / f"{prefix}_{part}"
                if _lacking(data, split, part, ids):
                    whole = archive if archive.exists() else fetch(url, archive)
                    _check_md5(whole, md5, verify)
                    log.info("%s: %d files written to %s", archive.name, extract(whole, data), data)
                    if lacking := _lacking(data, split, part, ids):
                        raise UserError(f"{whole}: no readable file of {listed(lacking)}; delete it, and check --url")
                    if keep_archives and whole != archive:
                        whole.rename(archive)
                else:
                    log.info("%s: its files are there already", archive.stem)
                for ours in data.glob(f"{archive.name}.*partial"):  # what has the archive's own name is the user's
                    ours.unlink()


def fetch(folder: str, path: Path) -> Path:
    """Fetch the file of that name from a URL; returns where it is: beside `path`, "NAME.VERSION.partial".

    Of a version (ETag and length) that is there in part only the rest is fetched, if the server gives ranges.
    A RequestException where it refuses, or the connection breaks again and again without having brought anything.
    """
    url = f"{folder.rstrip('/')}/{path.name}"
    session, tries = requests.Session(), RETRY.total
    session.headers = {"User-Agent": "isic2017-download", "Accept-Encoding": "identity"}
    session.mount("http://", HTTPAdapter(max_retries=RETRY))
    session.mount("https://", HTTPAdapter(max_retries=RETRY))
    session.hooks["response"].append(lambda answer, **_: answer.raise_for_status())
    said = session.head(url, allow_redirects=True, timeout=30).headers
    size = int(said.get("Content-Length", 0))
    version = f"{said.get('ETag')} {size}"
    partial = path.with_name(f"{path.name}.{zlib.crc32(version.encode()):08x}.partial")
    partial.touch()
    while (have := partial.stat().st_size) < size:
        log.info("%s: fetching %s", path.name, readable_size(size - have))
        if (needed := int(ROOM * size) - have) > shutil.disk_usage(path.parent).free:
            raise UserError(f"{path}: no room on the disk for {readable_size(needed)}; choose another --data DIR")
        with session.get(url, headers={"Range": f"bytes={have}-"}, stream=True, timeout=30) as answer:
            try:
                with partial.open("ab" if answer.status_code == 206 else "wb") as file:
                    for block in progress(answer.iter_content(BLOCK), f"{path.name}, MiB", (size - have) // BLOCK):
                        file.write(block)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                tries = RETRY.total if partial.stat().st_size > have else tries - 1
                if tries < 0:
                    raise
                log.warning("%s: %s; asking for the rest", path.name, quoted(str(error)))
    return partial


def extract(archive: Path, folder: Path) -> int:
    """Unpack a zip archive into `folder`, each file whole or not at all; returns how many were not there yet.

    UserError for damage and, before any file is written, for a path that leads out, or another file there.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            pending = [entry for entry in entries if not _is_there(folder / entry.filename, entry, archive)]
            for entry in progress(pending, f"{archive.name}: files"):
                (folder / entry.filename).parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, written_whole(folder / entry.filename) as file:
                    shutil.copyfileobj(source, file)
            return len(pending)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise UserError(f"{archive}: damaged, or no zip archive ({error}); delete it and fetch it again") from error


def _is_there(path: Path, entry: zipfile.ZipInfo, archive: Path) -> bool:
    name = Path(entry.filename)
    if name.anchor or ".." in name.parts:
        raise UserError(f"{archive}: {quoted(entry.filename)} leaves the folder; get another copy")
    if path.exists() and (path.stat().st_size != entry.file_size or zlib.crc32(path.read_bytes()) != entry.CRC):
        raise UserError(f"{path}: there with other content than in {archive.name}; move it away and start again")
    return path.exists()


def _check_md5(path: Path, expected: str, verify: bool) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        differs = f"{path}: its MD5 is {digest.hexdigest()}, expected {expected} (known from third parties only)"
        if verify:
            raise UserError(f"{differs}; delete it to fetch it again, or go on with it by --no-verify")
        log.warning("%s; going on with it (--no-verify)", differs)


def _labels(url: str, path: Path, count: int) -> dict[str, int]:
    file = path if path.exists() else fetch(url, path)
    try:
        if len(labels := read_labels(file)) != count:
            raise UserError(f"{file}: {len(labels)} labels, expected {count}")
    except UserError as error:
        raise UserError(f"{error}; delete it, and it is fetched again from --url") from error
    file.rename(path)
    return labels


def _lacking(data: Path, split: str, part: str, ids: dict[str, int]) -> list[str]:
    """Those of `ids` without an image (or mask) whose header can be read, sorted."""
    files, lacking = find_files(data, split), []
    for id_ in sorted(ids):
        try:
            image_size((files.images if part == IMAGES else files.masks)[id_])
        except (KeyError, UserError):
            lacking.append(id_)
    return lacking


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.data.download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="which ones (all)")
    parser.add_argument("--masks-only", action="store_true", help="masks and labels without the photographs")
    parser.add_argument("--data", type=Path, default=Path("Data/ISIC2017"), help="where they go (%(default)s)")
    parser.add_argument("--url", default=URL, help="folder on a server (%(default)s)")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="warn where an MD5 differs, and go on")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files once they are unpacked")
    try:
        download(**vars(parser.parse_args(argv)))
    except requests.RequestException as error:
        raise UserError(f"{quoted(str(error), 300)}; check --url, or try again later: it goes on") from error
    except StopRequested as stop:
        raise StopRequested(stop.number, "on the way; the same command goes on where it was") from None


if __name__ == "__main__":
    run_script(main)
