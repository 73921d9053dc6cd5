"""Downloading, from a server on this machine that does what servers and connections do wrong."""

import email.utils
import hashlib
import io
import re
import shutil
import sys
import threading
import time
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from utils import UserError
from utils.data import archive, download, read_split
from utils.data.download import IMAGES, LABELS, LOCK, MASKS, MD5, OFFICIAL, fetch, main
from utils.logger import log, run_script

BODY = hashlib.shake_256(b"body").digest(1000)
OTHER = hashlib.shake_256(b"other").digest(1000)
FIRST = None  # the Range header of a request for the whole file


class Server:
    """Serves `files`. For each request to a file, the first of its `faults` is taken off the list and happens.

    Faults: "cut", "stall", "drop" (no answer), "no range", "no length", "chunked", "long" and "short" (a wrong
    Content-Length), "wrong part", "drip" (a byte now and then), bytes (the answer), (status, Retry-After or Location,
    text). `requests` has name and Range header of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.with_etag, self.closing = True, threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/2017/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def ranges(self) -> list[str | None]:
        return [range_ for _, range_ in self.requests]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, range_ = request.path.removeprefix("/2017/"), request.headers["Range"]
        self.requests.append((name, range_))
        fault = self.faults[name].pop(0) if self.faults[name] else ""
        body, begin = self.files.get(name), 0
        if fault == "drop" or isinstance(fault, bytes):
            request.wfile.write(fault if isinstance(fault, bytes) else b"")
            return
        if isinstance(fault, tuple) or body is None:
            status, value, *text = fault or (404, None)
            request.send_response(status, *text)
            if value is not None:
                request.send_header("Location" if status == 302 else "Retry-After", value)
            request.send_header("Content-Length", "1000")  # which do not come
            request.end_headers()
            return
        if range_ and fault != "no range":
            begin = int(re.fullmatch(r"bytes=(\d+)-", range_)[1]) - (fault == "wrong part")
        if begin >= len(body):
            request.send_response(416)
            request.end_headers()
            return
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        if self.with_etag:
            request.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        body = body[begin:]
        if fault == "chunked":
            request.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        elif fault != "no length":
            request.send_header("Content-Length", str(len(body) + {"long": 100, "short": -100}.get(fault, 0)))
        request.end_headers()
        if fault == "drip":
            for byte in body:
                request.wfile.write(bytes([byte]))
                if self.closing.wait(0.02):
                    return
        request.wfile.write(body[: len(body) // 2] if fault in ("cut", "stall") else body)
        if fault == "stall":
            request.wfile.flush()
            self.closing.wait(3)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.closing.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that `download` would have slept."""
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    return pauses


@pytest.fixture(autouse=True)
def messages(caplog):
    """What is logged, whatever a script did to the logger before; after the test the logger is as it was."""
    before = log.handlers, log.level, log.propagate
    log.handlers, log.propagate = [caplog.handler], False
    log.setLevel("INFO")
    yield caplog
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])


def fetched(server, path, **kwargs) -> bytes:
    partial = fetch(server.url + "a.zip", path / "a.zip", **{"timeout": 5, **kwargs})
    assert partial == path / "a.zip.partial" and not (path / "a.zip").exists()
    return partial.read_bytes()


@pytest.mark.fault(
    "a connection that breaks or stalls, a server that is busy or sends another part",
    "tries again after a pause, goes on where it was; the file is whole",
)
@pytest.mark.parametrize(
    ("faults", "ranges", "paused"),
    [
        ([], [FIRST], []),
        (["no length"], [FIRST], []),
        (["chunked"], [FIRST], []),
        (["drop"], [FIRST, FIRST], [1]),
        (["cut"], [FIRST, "bytes=500-"], [1]),
        (["cut", "cut", "cut"], [FIRST, "bytes=500-", "bytes=750-", "bytes=875-"], [1, 2, 4]),
        (["cut", "no range"], [FIRST, "bytes=500-"], [1]),
        (["cut", "wrong part"], [FIRST, "bytes=500-", FIRST], [1, 2]),
        (["stall"], [FIRST, "bytes=500-"], [1]),
        (["long", ""], [FIRST, "bytes=1000-", FIRST], [1, 2]),
        ([(503, "7")], [FIRST, FIRST], [7]),
        ([(503, "99999")], [FIRST, FIRST], [600]),
        ([(503, None), (500, None), (429, "1"), (502, "soon")], [FIRST] * 5, [1, 2, 4, 8]),
        ([(503, "Wed, 21 Oct 2015 07:28:00 +99999999999999999999")], [FIRST, FIRST], [1]),
        (["cut", (503, "0"), "cut"], [FIRST, "bytes=500-", "bytes=500-", "bytes=750-"], [1, 2, 4]),
    ],
)
def test_faults_that_pass(server, tmp_path, pauses, faults, ranges, paused):
    server.files["a.zip"], server.faults["a.zip"] = BODY, faults
    assert fetched(server, tmp_path, timeout=0.2 if "stall" in faults else 5) == BODY
    assert (server.ranges(), pauses) == (ranges, paused)


@pytest.mark.fault("a busy server that names a time", "the next attempt is at that time")
def test_retry_after_a_date(server, tmp_path, pauses):
    server.files["a.zip"] = BODY
    server.faults["a.zip"] = [(503, email.utils.formatdate(time.time() + 100, usegmt=True))]
    assert fetched(server, tmp_path) == BODY
    assert 90 < pauses[0] <= 100


@pytest.mark.fault(
    "the same again and again; a server that refuses, or that is none",
    "one line (of control characters none), after the retries or at once; nothing under the file's name",
)
@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        ([(404, None)], "answers 404 .*is --url right", 1),
        ([(403, "1")], "answers 403 .*is --url right", 1),
        ([(503, "1")] * 9, "answers 503 .*; given up after 2 retries$", 3),
        (["drop"] * 9, "without response; given up after 2 retries$", 3),
        (["long"] * 9, "ended after 1000 of 1100 bytes; given up after 2 retries; .* at 1.0 kB", 3),
        (["cut"] * 9, "ended after 875 of 1000 bytes; given up after 2 retries; .* goes on at 875 bytes", 3),
        (["stall"] * 9, "nothing, or next to nothing, came for too long; given up", 3),
        ([(503, "1", "\x1b[2JBus\ty\x9b" + "!" * 999)] * 9, r"answers 503 \[2JBus y!{50,90}; given up", 3),
        ([b"SSH-2.0-server\x1b[2J\r\n"] * 9, r"SSH-2\.0-server\[2J; given up", 3),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n"], "not the URL of a file .*too large", 1),
    ],
)
def test_faults_that_stay(server, tmp_path, pauses, messages, faults, message, requests):
    server.files["a.zip"], server.faults["a.zip"] = BODY, faults
    with pytest.raises(UserError, match=rf"{server.url}a\.zip: .*{message}") as error:
        fetched(server, tmp_path, retries=2, timeout=0.2 if "stall" in faults else 5)
    assert (len(server.requests), len(pauses)) == (requests, requests - 1)
    assert all(line.isprintable() for line in (str(error.value), *messages.messages))
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.fault(
    "a server that sends a byte now and then",
    "an attempt that failed: tries again, then gives up with one line; the next call goes on",
)
def test_a_byte_now_and_then_is_as_none(server, tmp_path, pauses):
    server.files["a.zip"], server.faults["a.zip"] = BODY, ["drip"] * 2
    with pytest.raises(UserError, match="next to nothing, came for too long; given up after 1 retries"):
        fetched(server, tmp_path, retries=1, timeout=0.1)
    assert pauses == [1]
    server.faults.clear()
    assert fetched(server, tmp_path) == BODY


@pytest.mark.fault("a redirect with a body that does not come", "it is followed at once")
def test_redirects_are_followed_and_their_bodies_not_read(server, tmp_path, pauses):
    server.files["b.zip"], server.faults["a.zip"] = BODY, [(302, "b.zip")]
    assert fetched(server, tmp_path) == BODY
    assert not pauses


@pytest.mark.fault("redirects without end, or to something else than a web server", "one line, no retry")
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("a.zip", "redirects without end, the last: Found; is --url right"),
        ("ftp://127.0.0.1:1/a.zip", "Found, redirects to ftp://127.0.0.1:1/a.zip; is --url right"),
        ("file:///etc/\x1b[2J", r"'file:///etc/\[2J' is not allowed; is --url right"),
        ("http://[::1", "not the URL of a file"),
    ],
)
def test_redirects_that_lead_nowhere(server, tmp_path, pauses, location, message):
    server.faults["a.zip"] = [(302, location)] * 99
    with pytest.raises(UserError, match=rf"{server.url}a\.zip: .*{message}") as error:
        fetched(server, tmp_path)
    assert str(error.value).isprintable() and not pauses


@pytest.mark.fault("a URL that is none, or not of the web", "one line, no retry")
@pytest.mark.parametrize(
    "url", ["ftp://x/a", "file:///etc/passwd", "x.org/a", "http://[::1", "http://a b/", "http://x:y/"]
)
def test_no_url(tmp_path, pauses, url):
    with pytest.raises(UserError, match=f"--url {re.escape(url)}: (expected one|not the URL)"):
        fetch(url, tmp_path / "a.zip")
    assert not pauses


@pytest.mark.fault("no server there", "six retries, then one line")
def test_nobody_answers(server, tmp_path, pauses):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match=r"refused.*given up after 6 retries"):
        fetched(server, tmp_path)
    assert pauses == [1, 2, 4, 8, 16, 32]


@pytest.mark.fault(
    "a connection that breaks again and again, with new bytes in between",
    "goes on; only failures without new bytes count",
)
def test_new_bytes_start_the_count_of_failures_again(server, tmp_path, pauses, monkeypatch):
    server.files["a.zip"], server.faults["a.zip"] = BODY, ["cut"] * 5  # 500, 250, 125, 63, 31 bytes
    monkeypatch.setattr(download, "BLOCK", 100)
    assert fetched(server, tmp_path, retries=3) == BODY
    assert pauses == [1, 1, 1, 2, 4]


@pytest.mark.fault(
    "another version of the file on the server, half way",
    "begins again; no byte of the old one is in the new one",
)
@pytest.mark.parametrize("same_call", [True, False])
@pytest.mark.parametrize(
    ("new", "with_etag"),
    [(OTHER, True), *((new, etag) for new in (OTHER[:300], BODY + OTHER, BODY[:500]) for etag in (True, False))],
)
def test_file_that_changes_on_the_server(server, tmp_path, monkeypatch, new, with_etag, same_call):
    """No byte of the old file is in the new one. Without ETag and date the length tells (else the MD5 does)."""
    server.files["a.zip"], server.faults["a.zip"], server.with_etag = BODY, ["cut"], with_etag
    monkeypatch.setattr(download.time, "sleep", lambda _: server.files.update({"a.zip": new}))
    if not same_call:
        with pytest.raises(UserError, match="goes on at 500 bytes"):
            fetched(server, tmp_path, retries=0)
        server.files["a.zip"] = new
    assert fetched(server, tmp_path) == new
    assert server.ranges() == [FIRST, "bytes=500-", FIRST]


@pytest.mark.fault("a download that was given up", "the next call goes on where it was; what is whole is not asked for")
def test_the_next_call_goes_on_and_asks_nothing_when_all_is_there(server, tmp_path):
    server.files["a.zip"], server.faults["a.zip"] = BODY, ["cut"]
    with pytest.raises(UserError):
        fetched(server, tmp_path, retries=0)
    assert (tmp_path / "a.zip.partial").read_bytes() == BODY[:500]
    for _ in range(2):
        assert fetched(server, tmp_path) == BODY
        assert server.ranges() == [FIRST, "bytes=500-"]


@pytest.mark.fault("a part of a file whose version is not known", "begins again")
def test_part_of_unknown_origin_is_not_continued(server, tmp_path, pauses):
    server.files["a.zip"] = BODY
    (tmp_path / "a.zip.partial").write_bytes(OTHER[:500])
    assert fetched(server, tmp_path) == BODY


@pytest.mark.fault("not enough room for a file and what is in it", "one line before the first byte")
def test_disk_space_is_checked_before_the_first_byte(server, tmp_path, monkeypatch):
    server.files["a.zip"], server.faults["a.zip"] = BODY, ["", "cut", ""]
    free = type("Usage", (), {"free": 2399})
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=rf"a\.zip: 2\.4 kB needed in {tmp_path}, 2\.4 kB free; make room"):
        fetched(server, tmp_path, room=2.4)
    assert not list(tmp_path.iterdir())
    free.free = 2400
    with pytest.raises(UserError, match="ended"):
        fetched(server, tmp_path, room=2.4, retries=0)
    free.free = 1900  # 500 bytes are there
    assert fetched(server, tmp_path, room=2.4) == BODY


@pytest.mark.fault("the disk gets full while a file is fetched", "one line, no retry; the next call goes on")
def test_disk_that_gets_full(server, tmp_path, pauses):
    """No use in trying again; what was written can be continued. The limit on a file's length stands for the disk."""
    server.files["a.zip"] = BODY
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.zip\.partial: cannot be written \(File too large\)"):
            fetched(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not pauses
    assert fetched(server, tmp_path) == BODY
    assert server.ranges() == [FIRST, "bytes=600-"]


@pytest.mark.fault("a folder that cannot be written", "one line, no retry")
@pytest.mark.parametrize("below", ["file", "absent"])
def test_folder_that_cannot_be_written(server, tmp_path, pauses, below):
    (tmp_path / "file").write_text("")
    server.files["a.zip"] = BODY
    with pytest.raises(UserError, match="cannot be written"):
        fetch(server.url + "a.zip", tmp_path / below / "a.zip")
    assert not pauses


def drawn(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 12), 90).save(file, kind)
    return file.getvalue()


IDS = {"train": range(10, 13), "validation": range(20, 22), "test": range(30, 32)}


def zipped(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return file.getvalue()


def images(split: str, folder: str) -> dict[str, bytes]:
    """What the official archives hold: photographs, superpixels, a table."""
    found = {f"{folder}ISIC_{n:07}.jpg": drawn("JPEG") for n in IDS[split]}
    found |= {f"{folder}ISIC_{n:07}_superpixels.png": drawn("PNG") for n in IDS[split]}
    return found | {f"{folder}{OFFICIAL[split]}_Data_metadata.csv": b"image_id,age_approximate,sex\n"}


@pytest.fixture
def mirror(server, monkeypatch):
    """The challenge in small: seven images, under the official names and in the official form."""
    monkeypatch.setattr(download, "COUNTS", {split: len(ids) for split, ids in IDS.items()})
    for split, ids in IDS.items():
        name = OFFICIAL[split]
        rows = "".join(f"ISIC_{n:07},{n % 2}.0,0.0\n" for n in ids)
        masks = {f"{name}_Part1_GroundTruth/ISIC_{n:07}_segmentation.png": drawn("PNG") for n in ids}
        server.files |= {
            f"{name}_{LABELS}": f"image_id,melanoma,seborrheic_keratosis\n{rows}".encode(),
            f"{name}_{MASKS}": zipped(masks),
            f"{name}_{IMAGES}": zipped(images(split, f"{name}_Data/")),
        }
    monkeypatch.setattr(download, "MD5", {name: hashlib.md5(body).hexdigest() for name, body in server.files.items()})
    return server


def run(mirror, data, *flags: str) -> list[str]:
    """The command's requests."""
    before = len(mirror.requests)
    main(["--data", str(data), "--url", mirror.url, *flags])
    return [name for name, _ in mirror.requests[before:]]


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


def test_known_digests_are_those_of_the_archives_fetched():
    assert MD5.keys() == {f"{name}_{part}" for name in OFFICIAL.values() for part in (IMAGES, MASKS)}
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in MD5.values())
    assert len(set(MD5.values())) == len(MD5)


@pytest.mark.fault("a second download into the same folder", "refuses with a line; nothing is asked for")
def test_a_second_download_into_the_same_folder_is_refused(mirror, tmp_path):
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match="another process downloads into it; wait for it"):
        run(mirror, tmp_path)
    assert mirror.requests == [] and names(tmp_path) == set()


def test_everything_is_fetched_once(mirror, tmp_path, messages):
    data = tmp_path / "new" / "ISIC2017"
    assert run(mirror, data) == [f"{name}_{part}" for name in OFFICIAL.values() for part in (LABELS, MASKS, IMAGES)]
    for split, ids in IDS.items():
        samples = read_split(data, split)
        assert [(sample.id, sample.label) for sample in samples] == [(f"ISIC_{n:07}", 0 if n % 2 else 2) for n in ids]
        assert all(sample.mask for sample in samples)
    files = [path for path in data.rglob("*") if path.is_file() and path.name != LOCK]
    assert len(files) == 7 * 3 + 3 + 3  # images, superpixels, masks, labels, tables; nothing else
    assert run(mirror, data) == []
    assert "ISIC-2017_Test_v2_Data: its files are there already" in messages.messages


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--masks-only", "--splits", "test"], {"ISIC-2017_Test_v2_Part1_GroundTruth", f"ISIC-2017_Test_v2_{LABELS}"}),
        (["--splits", "validation"], {f"ISIC-2017_Validation_{n}" for n in ("Data", "Part1_GroundTruth", LABELS)}),
        (
            ["--splits", "test", "--masks-only", "--keep-archives"],
            {f"ISIC-2017_Test_v2_{n}" for n in ("Part1_GroundTruth", MASKS, LABELS)},
        ),
    ],
)
def test_parts_and_archives_that_are_asked_for(mirror, tmp_path, flags, expected):
    run(mirror, tmp_path, *flags)
    assert names(tmp_path) == expected


@pytest.mark.fault(
    "an image lost; a mask cut short",
    "what lacks is fetched again; the mask is to be moved away, it is not overwritten",
)
def test_what_is_missing_is_fetched_again_and_nothing_else(mirror, tmp_path):
    run(mirror, tmp_path)
    (tmp_path / "ISIC-2017_Training_Data/ISIC_0000011.jpg").unlink()
    assert run(mirror, tmp_path) == [f"ISIC-2017_Training_{IMAGES}"]
    mask = tmp_path / "ISIC-2017_Validation_Part1_GroundTruth/ISIC_0000021_segmentation.png"
    mask.write_bytes(mask.read_bytes()[:5])
    with pytest.raises(UserError, match=r"ISIC_0000021_segmentation\.png: there with other content.*move it away"):
        run(mirror, tmp_path)
    mask.unlink()
    assert run(mirror, tmp_path) == []  # the archive is still there
    assert read_split(tmp_path, "validation")[1].mask == mask


@pytest.mark.fault("an archive with another MD5", "one line, nothing is unpacked; `--no-verify` warns and goes on")
def test_other_md5_is_told_and_can_be_overridden(mirror, tmp_path, monkeypatch, messages):
    name = f"ISIC-2017_Test_v2_{MASKS}"
    digest, expected = download.MD5[name], "0" * 32
    monkeypatch.setitem(download.MD5, name, expected)
    with pytest.raises(UserError, match=rf"{name}\.partial: its MD5 is {digest}, expected {expected} .*--no-verify"):
        run(mirror, tmp_path, "--splits", "test")
    assert names(tmp_path) == {f"ISIC-2017_Test_v2_{LABELS}", f"{name}.partial", f"{name}.partial.version"}
    assert run(mirror, tmp_path, "--splits", "test", "--no-verify") == [f"ISIC-2017_Test_v2_{IMAGES}"]
    assert any(digest in line and expected in line for line in messages.messages)
    assert len(read_split(tmp_path, "test")) == 2


@pytest.mark.fault(
    "fewer bytes than the file has, or a sign-in page",
    "one line, nothing is unpacked, with `--no-verify` neither",
)
@pytest.mark.parametrize(("faults", "body"), [(["short"], None), ([], b"<html>Sign in to this network</html>")])
def test_wrong_bytes_do_not_get_past_the_md5(mirror, tmp_path, faults, body):
    name = f"ISIC-2017_Test_v2_{IMAGES}"
    mirror.files[name], mirror.faults[name] = body or mirror.files[name], faults
    with pytest.raises(UserError, match="its MD5 is"):
        run(mirror, tmp_path, "--splits", "test")
    assert not (tmp_path / "ISIC-2017_Test_v2_Data").exists()
    with pytest.raises(UserError, match="damaged, or no zip archive"):
        run(mirror, tmp_path, "--splits", "test", "--no-verify")
    assert not (tmp_path / "ISIC-2017_Test_v2_Data").exists()


def test_archive_that_lay_there_is_used_and_kept(mirror, tmp_path, messages):
    path = tmp_path / f"ISIC-2017_Test_v2_{IMAGES}"
    path.write_bytes(mirror.files[path.name])
    assert path.name not in run(mirror, tmp_path, "--splits", "test")
    assert path.read_bytes() == mirror.files[path.name]
    assert any("kept, because it was there before" in line for line in messages.messages)


def stopped_while_unpacking(mirror, data, *flags: str) -> None:
    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(archive, "_copy", stopped)
        run(mirror, data, *flags)


@pytest.mark.fault(
    "Ctrl-C while an archive is unpacked",
    "the next call goes on, asks for nothing, and removes the archive (or keeps it, if asked to)",
)
@pytest.mark.parametrize("keep", [True, False])
def test_an_archive_fetched_here_is_known_again_after_a_stop(mirror, tmp_path, keep):
    flags = ["--masks-only", "--splits", "test", *["--keep-archives"] * keep]
    name = f"ISIC-2017_Test_v2_{MASKS}"
    stopped_while_unpacking(mirror, tmp_path, *flags)
    assert not (tmp_path / name).exists()
    assert run(mirror, tmp_path, *flags) == []
    left = {f"ISIC-2017_Test_v2_{LABELS}", "ISIC-2017_Test_v2_Part1_GroundTruth"}
    assert names(tmp_path) == left | ({name} if keep else set())
    assert not keep or (tmp_path / name).read_bytes() == mirror.files[name]


@pytest.mark.fault(
    "the same with an archive that lay there",
    "the archive stays; a part of it fetched before is removed",
)
def test_an_archive_that_lay_there_is_kept_after_a_stop_too(mirror, tmp_path):
    path = tmp_path / f"ISIC-2017_Test_v2_{MASKS}"
    mirror.faults[path.name] = ["cut"]
    with pytest.raises(UserError, match="goes on at"):
        run(mirror, tmp_path, "--splits", "test", "--retries", "0")
    path.write_bytes(mirror.files[path.name])  # the user took a browser
    stopped_while_unpacking(mirror, tmp_path, "--masks-only", "--splits", "test")
    assert run(mirror, tmp_path, "--masks-only", "--splits", "test") == []
    assert path.read_bytes() == mirror.files[path.name]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.fault(
    "with `--keep-archives` a stop after the last file", "the next call keeps the archive, under its name"
)
def test_an_archive_to_be_kept_is_so_after_a_stop(mirror, tmp_path):
    def stopped(file, path, finish=download._finish):
        if path.suffix == ".zip":
            raise KeyboardInterrupt
        finish(file, path)

    flags, name = ["--masks-only", "--splits", "test", "--keep-archives"], f"ISIC-2017_Test_v2_{MASKS}"
    run(mirror, tmp_path, "--masks-only", "--splits", "test")  # the labels
    shutil.rmtree(tmp_path / name.removesuffix(".zip"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(download, "_finish", stopped)
        run(mirror, tmp_path, *flags)
    assert run(mirror, tmp_path, *flags) == [] and (tmp_path / name).read_bytes() == mirror.files[name]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.fault("a kill after an archive is unpacked and before it is removed", "the next call removes it")
def test_an_archive_whose_files_are_all_there_is_removed(mirror, tmp_path):
    run(mirror, tmp_path, "--splits", "test")
    partial = tmp_path / f"ISIC-2017_Test_v2_{MASKS}.partial"
    partial.write_bytes(b"whole")
    Path(f"{partial}.version").write_text("version 5")
    assert run(mirror, tmp_path, "--splits", "test") == []
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("folder", ["", "ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data/", "ISIC-2017_Test_Data/"])
def test_archives_of_mirrors(mirror, tmp_path, monkeypatch, folder):
    mirror.files[f"ISIC-2017_Test_v2_{IMAGES}"] = zipped(images("test", folder))
    run(mirror, tmp_path, "--splits", "test", "--no-verify")
    assert run(mirror, tmp_path, "--splits", "test") == []


@pytest.mark.fault(
    "an archive of another split under the name, with `--no-verify`",
    "one line that counts and names the ids without a file",
)
def test_archive_of_something_else(mirror, tmp_path):
    name = f"ISIC-2017_Test_v2_{IMAGES}"
    mirror.files[name] = mirror.files[f"ISIC-2017_Validation_{IMAGES}"]
    with pytest.raises(UserError, match=rf"{name}\.partial: unpacked, but 2 of 2 ids .*ISIC_0000030"):
        run(mirror, tmp_path, "--splits", "test", "--no-verify")


@pytest.mark.fault("a label file that is none", "one line, nothing of it is left; one that lay there stays as it is")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Sign in</html>", "no column"),
        (b"image_id,melanoma,seborrheic_keratosis\nISIC_0000030,0,0\n", "1 labels, expected 2"),
        (b"image_id,melanoma,seborrheic_keratosis\nISIC_0000030,0,0\nISIC_0000031,", "expected 0 or 1"),
        (b"image_id,melanoma,seborrheic_keratosis\n\x1b[2J,0,0\n", "x1b"),
        (b"\x1f\x8b\x08 as a server sends it that compresses unasked", "not"),
    ],
)
def test_label_files_are_read_before_they_count(mirror, tmp_path, body, message):
    name = f"ISIC-2017_Test_v2_{LABELS}"
    whole, mirror.files[name] = mirror.files[name], body
    with pytest.raises(UserError, match=rf"{mirror.url}{name}: not the label file .*{message}") as error:
        run(mirror, tmp_path, "--splits", "test")
    assert str(error.value).isprintable() and names(tmp_path) == set()
    (tmp_path / name).write_bytes(body)
    with pytest.raises(UserError, match=rf"{message}.*; move {name} away"):
        run(mirror, tmp_path, "--splits", "test")
    assert (tmp_path / name).read_bytes() == body
    (tmp_path / name).unlink()
    mirror.files[name] = whole
    run(mirror, tmp_path, "--splits", "test")


@pytest.mark.fault("Ctrl-C while a file is fetched", "exit code 130; the next call goes on where it was")
def test_interruption_keeps_the_part_for_the_next_call(mirror, tmp_path, monkeypatch, capsys):
    name = f"ISIC-2017_Test_v2_{MASKS}"

    def interrupted(items, description, _total):
        for item in items:
            yield item
            if name in description:
                raise KeyboardInterrupt

    monkeypatch.setattr(download, "BLOCK", 100)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(download, "progress", interrupted)
        run(mirror, tmp_path, "--splits", "test")
    assert stop.value.code == 130
    assert "goes on where it was" in capsys.readouterr().err
    assert (tmp_path / f"{name}.partial").read_bytes() == mirror.files[name][:100]
    run(mirror, tmp_path, "--splits", "test")
    assert (name, "bytes=100-") in mirror.requests
    assert read_split(tmp_path, "test")[0].mask


@pytest.mark.fault("a mistake in the command", "one line, exit code 2")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--url", "example.org"], "error: --url example.org/ISIC-2017_Training_Part3_GroundTruth.csv: expected one"),
        (["--data", "taken/by/a/file"], "error: taken/by/a/file: cannot be made a folder (Not a directory)"),
        (["--retries", "-1"], "--retries: -1 is below 0"),
        (["--splits", "all"], "invalid choice: 'all'"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: main(flags))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error


def test_output_in_a_file_is_a_few_lines(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["download", "--data", str(tmp_path), "--url", mirror.url, "--no-verify"])
    monkeypatch.setattr(download, "BLOCK", 10)
    run_script(main)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 21 and "\r" not in out  # nine files fetched, MD5 and content of six archives
