"""Fetch the challenge's data: `python -m utils.data.download`.

    python -m utils.data.download --splits train validation      # what training needs
    python -m utils.data.download --masks-only                   # masks and labels without the photographs

The same command goes on where a stopped one was. A part counts as there, and is not fetched, when every id of its
split's label file has its image (or mask) and the header of each of those files can be read.
"""

import argparse
import email.utils
import hashlib
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from io import FileIO
from pathlib import Path
from signal import SIGINT

from filelock import FileLock, Timeout

from utils import UserError
from utils.command_line import at_least
from utils.data.archive import BLOCK, blocks, check_room, extract, readable_size
from utils.data.images import image_size
from utils.data.isic import SPLITS, find_files, read_labels
from utils.logger import log, progress, run_script

URL = "https://isic-challenge-data.s3.amazonaws.com/2017/"
OFFICIAL = {"train": "ISIC-2017_Training", "validation": "ISIC-2017_Validation", "test": "ISIC-2017_Test_v2"}
COUNTS = {"train": 2000, "validation": 150, "test": 600}
LOCK = ".download.lock"  # in the data's folder
IMAGES, MASKS, LABELS = "Data.zip", "Part1_GroundTruth.zip", "Part3_GroundTruth.csv"
MD5 = {  # from third parties; the challenge publishes none
    "ISIC-2017_Training_Data.zip": "a14a7e622c67a358797ae59abb8a0b0c",
    "ISIC-2017_Training_Part1_GroundTruth.zip": "77fdbeb6fbec4139937224416b250f4c",
    "ISIC-2017_Validation_Data.zip": "8d6419d942112f709894c0d82f6c9038",
    "ISIC-2017_Validation_Part1_GroundTruth.zip": "64d3e68fa2deeb8a5e89aa8dec2efd44",
    "ISIC-2017_Test_v2_Data.zip": "5f6a0b5e1f2972bd1f5ea02680489f09",
    "ISIC-2017_Test_v2_Part1_GroundTruth.zip": "b1742de6bd257faca3b2b21a4aa3b781",
}

RETRIES = 6  # failures in a row; one that brought a BLOCK or more of new bytes starts the count again
TIMEOUT = 30.0  # seconds without a byte, or with less than SLOWEST
SLOWEST = 1 << 10  # bytes a second
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0  # seconds; the pause doubles, or is what the server asks for
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone at the next attempt
WEB = ("http://", "https://")
UNPACKED = 1.4  # times the archive; measured: photographs 1.0, masks 1.3


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and does not read what comes with a redirect: it may have no end."""

    inf_msg = "redirects without end, the last: "

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()
        if not newurl.startswith(WEB):
            raise urllib.error.HTTPError(req.full_url, code, f"{msg}, redirects to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Again(Exception):
    """An attempt that failed and may succeed when repeated; `pause` is what the server asks for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def download(
    data: Path,
    splits: Sequence[str] = SPLITS,
    *,
    url: str = URL,
    masks_only: bool = False,
    verify: bool = True,
    keep_archives: bool = False,
    retries: int = RETRIES,
) -> None:
    """Bring labels, masks and, unless `masks_only`, photographs of `splits` into `data`, where they are not there yet.

    Args:
        url: folder on a server that holds the files under their official names.
        verify: stop where an archive's MD5 is not the known one, instead of warning.
        keep_archives: keep the archives fetched here once they are unpacked. Those that lay there always are.
        retries: attempts after a failed one, see `fetch`.

    Raises UserError as `fetch` and `extract` do, and when a digest, a label file or the content of an archive is not
    as expected.
    """
    url = url.rstrip("/") + "/"
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{data}: cannot be made a folder ({error.strerror}); choose --data DIR") from error
    with _alone(data):
        _download(data, splits, url, masks_only, verify, keep_archives, retries)


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """One process at a time fetches into a folder: two would write into the same unfinished file."""
    lock = FileLock(data / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{data}: another process downloads into it; wait for it, or choose --data DIR") from error
    except OSError as error:
        raise UserError(f"{data}: cannot be written ({error.strerror}); choose --data DIR") from error
    try:
        yield
    finally:
        lock.release()


def _download(
    data: Path, splits: Sequence[str], url: str, masks_only: bool, verify: bool, keep_archives: bool, retries: int
) -> None:
    for split in splits:
        ids = _get_labels(data / f"{OFFICIAL[split]}_{LABELS}", url, COUNTS[split], retries)
        for part in (MASKS,) if masks_only else (MASKS, IMAGES):
            archive = data / f"{OFFICIAL[split]}_{part}"
            partial = Path(f"{archive}.partial")  # ours; what has the archive's own name may be the user's
            if _lacking(data, split, part, ids):
                theirs = archive.exists()
                whole = archive if theirs else fetch(url + archive.name, archive, retries=retries, room=1 + UNPACKED)
                _check_md5(whole, MD5[archive.name], verify)
                written = extract(whole, data)
                log.info("%s: %d files written to %s", archive.name, written, data)
                if lacking := _lacking(data, split, part, ids):
                    raise UserError(
                        f"{whole}: unpacked, but {len(lacking)} of {len(ids)} ids have no readable file of it "
                        f"({lacking[0]} …); delete it and take another --url"
                    )
                if theirs:
                    log.info("%s: kept, because it was there before; it is not needed any more", archive)
                elif keep_archives:
                    _finish(whole, archive)
            else:
                log.info("%s: its files are there already", archive.stem)
                if keep_archives and _is_whole(partial) and not archive.exists():  # stopped just before
                    _finish(partial, archive)
            if not keep_archives:
                _remove(partial)


def fetch(url: str, path: Path, *, retries: int = RETRIES, timeout: float = TIMEOUT, room: float = 1.0) -> Path:
    """Fetch `url` into `path` + ".partial" and return that file, whole by its length, to be checked and renamed.

    What such a file holds is kept where the server still has the same version (ETag or date, and length, which lie
    beside it in ".partial.version") and grants ranges. It stays when this is interrupted.

    Args:
        retries: attempts after a failed one, in a row; 0 gives up at the first failure. Pauses double from one second.
        timeout: seconds without a byte, or with less than SLOWEST, after which an attempt has failed.
        room: free disk space needed, as a multiple of the file's length (what is there already counts).

    Raises UserError naming the URL: no such file there, retries used up, disk too full or not writable.
    """
    if not url.lower().startswith(WEB):
        raise UserError(f"--url {url}: expected one that starts with https:// or http://")
    partial, name = Path(f"{path}.partial"), path.name
    failures, longest = 0, _length(partial)
    while True:
        try:
            _attempt(url, partial, name, timeout, room)
            return partial
        except (InvalidURL, ValueError, OverflowError) as error:
            raise UserError(f"--url {url}: not the URL of a file ({_printable(error)})") from error
        except (_Again, HTTPException, OSError) as error:
            reason, pause = _reason(error), getattr(error, "pause", 0.0)
        if _length(partial) >= longest + BLOCK:
            failures, longest = 0, _length(partial)
        failures += 1
        if failures > retries:
            kept = f"; the same command goes on at {readable_size(_length(partial))}" if _length(partial) else ""
            raise UserError(f"{url}: {reason}; given up after {retries} retries{kept}")
        pause = min(max(pause, FIRST_PAUSE * 2 ** (failures - 1)), LONGEST_PAUSE)
        log.warning("%s: %s; trying again in %.0f s (%d of %d)", name, reason, pause, failures, retries)
        time.sleep(pause)


def _attempt(url: str, partial: Path, name: str, timeout: float, room: float) -> None:
    """Append what `partial` lacks, or begin it again. Raises what the network raises, _Again or UserError."""
    version_file = Path(f"{partial}.version")
    if _is_whole(partial):
        return
    have, before = _length(partial), _version(partial)
    headers = {"User-Agent": "isic2017-download", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        opener = urllib.request.build_opener(_Redirects)
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {_printable(error.reason)}"
        if error.code == 416:  # the file there has become shorter
            partial.unlink(missing_ok=True)
        elif error.code not in PASSING:
            raise UserError(f"{url}: {answer}; is --url right?") from error
        raise _Again(answer, _retry_after(error)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url}: the server's certificate is not accepted ({_printable(error.reason)})") from error
        raise
    with response:
        begin, size = _range(response)
        version = response.headers["ETag"] or response.headers["Last-Modified"] or ""
        version = f"{version} {size or 'unknown'}"
        if begin and (begin != have or version != before):
            partial.unlink(missing_ok=True)
            raise _Again("the file on the server is not the one begun with")
        if begin != have:
            log.info("%s: the server gives no parts of it; beginning again", name)
        check_room(partial, int((size or 0) * room) - begin, f"{url}: ")
        log.info("%s: fetching %s", name, "it, of unknown length" if size is None else readable_size(size - begin))
        try:
            if not begin:
                partial.write_bytes(b"")
                version_file.write_text(version)
            file = partial.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{partial}: cannot be written ({error.strerror})") from error
        with file:
            received = _received(response, file, timeout)
            for _ in progress(received, f"{name}, MiB", ((size or begin) - begin) // BLOCK or None):
                pass
    if size is not None and _length(partial) != size:
        raise _Again(f"the connection ended after {_length(partial)} of {size} bytes")


def _version(partial: Path) -> str:
    """Of the file on the server and its length, as noted when it was begun; "" where that is not known."""
    path = Path(f"{partial}.version")
    return path.read_text(errors="replace") if path.is_file() else ""


def _is_whole(partial: Path) -> bool:
    have = _length(partial)
    return have > 0 and _version(partial).endswith(f" {have}")


def _range(response: HTTPResponse) -> tuple[int, int | None]:
    """Where in the file the body begins (-1: not said) and the length of the whole file, if the server says it."""
    if response.status != 206:
        return 0, response.length
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
    return (int(said[1]), None if said[2] == "*" else int(said[2])) if said else (-1, None)


def _received(response: HTTPResponse, file: FileIO, timeout: float) -> Iterator[None]:
    """Write the body as it comes; one step for each BLOCK. TimeoutError where it comes slower than SLOWEST."""
    count = steps = before = 0
    since = time.monotonic()
    while block := response.read1(BLOCK):  # read() would lose what came before a stall
        try:
            while block:
                written = file.write(block)
                block, count = block[written:], count + written
        except OSError as error:
            raise UserError(f"{file.name}: cannot be written ({error.strerror}); the same command goes on") from error
        while steps < count // BLOCK:
            steps += 1
            yield
        if (now := time.monotonic()) - since > timeout:
            if count - before < SLOWEST * timeout:
                raise TimeoutError
            since, before = now, count


def _retry_after(error: urllib.error.HTTPError) -> float:
    """The pause a server asks for, in seconds: Retry-After as a number or a date; 0 without."""
    said = error.headers["Retry-After"] or ""
    if said.strip().isdecimal():
        return float(said)
    try:
        return email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "nothing, or next to nothing, came for too long"
    return _printable(cause) or type(cause).__name__


def _printable(said: object) -> str:
    """What a server said, for a terminal: one line without control characters, 100 characters at most."""
    return "".join(filter(str.isprintable, " ".join(str(said).split())))[:100]


def _get_labels(path: Path, url: str, count: int, retries: int) -> dict[str, int]:
    """The labels of a split by id, fetched where `path` is not there. UserError when it is not `count` labels."""
    ours = not path.exists()
    file = fetch(url + path.name, path, retries=retries) if ours else path
    try:
        labels = read_labels(file)
        if len(labels) != count:
            raise UserError(f"{file}: {len(labels)} labels, expected {count}")
    except UserError as error:
        if ours:
            _remove(file)
            raise UserError(f"{url}{path.name}: not the label file ({error}); is --url right?") from error
        raise UserError(f"{error}; move {path.name} away, and it is fetched") from error
    _finish(file, path)
    return labels


def _finish(file: Path, path: Path) -> None:
    if file != path:
        file.replace(path)
        Path(f"{file}.version").unlink(missing_ok=True)


def _remove(partial: Path) -> None:
    for path in (partial, Path(f"{partial}.version")):
        path.unlink(missing_ok=True)


def _lacking(data: Path, split: str, part: str, ids: Iterable[str]) -> list[str]:
    """Those of `ids` without an image (or mask) whose header can be read, sorted."""
    found = find_files(data, split)
    paths = found.images if part == IMAGES else found.masks
    return sorted(id_ for id_ in ids if id_ not in paths or not _opens(paths[id_]))


def _opens(path: Path) -> bool:
    try:
        image_size(path)
    except UserError:
        return False
    return True


def _check_md5(path: Path, expected: str, verify: bool) -> None:
    log.info("%s: checking its MD5", path.name)
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks(path):
        digest.update(block)
    if digest.hexdigest() == expected:
        return
    differs = f"{path}: its MD5 is {digest.hexdigest()}, expected {expected} (known from third parties only)"
    if verify:
        raise UserError(f"{differs}; delete it to fetch it again, or go on with it by --no-verify")
    log.warning("%s; going on with it (--no-verify)", differs)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m utils.data.download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="which ones (all)")
    parser.add_argument("--masks-only", action="store_true", help="masks and labels without the photographs")
    parser.add_argument("--data", type=Path, default=Path("Data/ISIC2017"), help="where they go (%(default)s)")
    parser.add_argument("--url", default=URL, help="folder on a server (%(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="warn where an MD5 differs, and go on")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files once they are unpacked")
    parser.add_argument("--retries", type=at_least(0), default=RETRIES, help="after failures in a row (%(default)s)")
    args = parser.parse_args(argv)
    try:
        download(
            args.data,
            args.splits,
            url=args.url,
            masks_only=args.masks_only,
            verify=not args.no_verify,
            keep_archives=args.keep_archives,
            retries=args.retries,
        )
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", SIGINT))


if __name__ == "__main__":
    run_script(main)
