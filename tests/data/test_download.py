"""Downloading, from a server on this machine that does what servers and connections do wrong."""

import hashlib
import io
import re
import shutil
import signal
import threading
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from utils import UserError
from utils.data import download
from utils.data.download import IMAGES, LABELS, MASKS, extract, main
from utils.data.isic import PREFIXES, read_split
from utils.logger import run_script

IDS = {"train": range(10, 13), "validation": range(20, 22), "test": range(30, 32)}
MIB = 1 << 20
FETCH = ["--splits", "test", "--masks-only", "--no-verify", "--keep-archives"]
TEST_FOLDER = "ISIC-2017_Test_v2_Part1_GroundTruth"
TEST_LABELS, TEST_MASKS, TEST_IMAGES = (f"ISIC-2017_Test_v2_{part}" for part in (LABELS, MASKS, IMAGES))


class Server:
    """Serves `files`. For each GET, the first of the file's `faults` is taken off the list and happens: "drop" (no
    answer), a number (the connection ends after so many bytes), "no range", (status, Retry-After or Location).
    `requests` has the name and the first byte of each GET."""

    def __init__(self) -> None:
        self.files, self.faults, self.requests = {}, defaultdict(list), []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(self, *args))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/2017"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, ours: Server, *args) -> None:
        self.ours = ours
        super().__init__(*args)

    def do_HEAD(self, begin: int = 0) -> None:
        body = self.ours.files.get(self.path.removeprefix("/2017/"))
        self.send_response(404 if body is None else 206 if begin else 200)
        if body is not None:
            self.send_header("Content-Length", str(len(body) - begin))
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.end_headers()

    def do_GET(self) -> None:
        name, begin = self.path.removeprefix("/2017/"), int(re.search(r"\d+", self.headers["Range"])[0])
        self.ours.requests.append((name, begin))
        fault = self.ours.faults[name].pop(0) if self.ours.faults[name] else None
        if isinstance(fault, tuple):
            self.send_response(fault[0])
            if fault[1]:
                self.send_header("Location" if fault[0] == 302 else "Retry-After", fault[1])
            self.end_headers()
        elif fault != "drop":
            begin = 0 if fault == "no range" else begin
            self.do_HEAD(begin)
            self.wfile.write(self.ours.files[name][begin:][: fault if isinstance(fault, int) else None])

    def log_message(self, *_) -> None:
        pass


def drawn(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 12), 90).save(file, kind)
    return file.getvalue()


def zipped(entries: dict) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return file.getvalue()


def masks(split: str, more: bytes = hashlib.shake_256(b"more").digest(4 * MIB)) -> bytes:
    """An archive as the official one of the masks, with one file more, of 4 MiB."""
    folder = f"{PREFIXES[split]}_Part1_GroundTruth"
    content = {f"{folder}/ISIC_{n:07}_segmentation.png": drawn("PNG") for n in IDS[split]}
    return zipped({**content, f"{folder}/more": more})


@pytest.fixture
def server(monkeypatch):
    """The challenge in small: seven images, under the official names and in the official form."""
    monkeypatch.setenv("no_proxy", "*")
    server, official = Server(), {}
    for split, ids in IDS.items():
        prefix = PREFIXES[split]
        labels = "".join(f"ISIC_{n:07},{n % 2}.0,0.0\n" for n in ids)
        images = zipped({f"{prefix}_Data/ISIC_{n:07}.jpg": drawn("JPEG") for n in ids})
        server.files[f"{prefix}_{LABELS}"] = f"image_id,melanoma,seborrheic_keratosis\n{labels}".encode()
        server.files |= {f"{prefix}_{MASKS}": (truth := masks(split)), f"{prefix}_{IMAGES}": images}
        official[split] = (len(ids), hashlib.md5(truth).hexdigest(), hashlib.md5(images).hexdigest())
    monkeypatch.setattr(download, "OFFICIAL", official)
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(total=2, backoff_factor=0))
    yield server
    server.http.shutdown()
    server.http.server_close()


def run(server, data: Path, *flags: str) -> list[str]:
    """The names of the files that the command asks for."""
    before = len(server.requests)
    main(["--data", str(data), "--url", server.url, *flags])
    return [name for name, _ in server.requests[before:]]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".download.lock"}


@pytest.mark.parametrize(
    ("faults", "begins"),
    [
        (["drop"], [0, 0]),
        ([(503, ""), (429, "0")], [0] * 3),
        ([2 * MIB, MIB, "drop", (502, "")], [0, 2 * MIB, 3 * MIB, 3 * MIB, 3 * MIB]),
        ([2 * MIB, "no range"], [0, 2 * MIB]),
        ([MIB, 0, 0, MIB, 0, 0], [0, MIB, MIB, MIB, 2 * MIB, 2 * MIB, 2 * MIB]),
    ],
)
def test_what_passes_is_tried_again_and_goes_on_where_it_was(server, tmp_path, faults, begins):
    server.faults[TEST_MASKS] = list(faults)
    run(server, tmp_path, *FETCH)
    assert [begin for name, begin in server.requests if name == TEST_MASKS] == begins
    assert (tmp_path / TEST_MASKS).read_bytes() == server.files[TEST_MASKS]


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        ([(403, "1")], "403 .*check --url", 1),
        ([(503, "")] * 9, "too many 503 error responses", 3),
        (["drop"] * 9, "Max retries exceeded", 3),
        ([0] * 9, "IncompleteRead", 3),
        ([(302, "ftp://127.0.0.1:1/a")], "No connection adapters", 1),
    ],
)
def test_what_stays_ends_with_one_line(server, tmp_path, faults, message, requests):
    server.faults[TEST_LABELS] = list(faults)
    with pytest.raises(UserError, match=message) as error:
        run(server, tmp_path, "--splits", "test")
    assert str(error.value).isprintable() and len(server.requests) == requests
    assert not (tmp_path / TEST_LABELS).exists()


def test_another_version_on_the_server_is_begun_again(server, tmp_path):
    server.faults[TEST_MASKS] = [2 * MIB, 0, 0, 0]
    with pytest.raises(UserError, match="it goes on"):
        run(server, tmp_path, *FETCH)
    server.files[TEST_MASKS] = new = server.files[TEST_MASKS][:-1] + b"!"
    run(server, tmp_path, *FETCH)
    assert (tmp_path / TEST_MASKS).read_bytes() == new
    assert [begin for name, begin in server.requests if name == TEST_MASKS] == [0, *[2 * MIB] * 3, 0]
    assert not list(tmp_path.glob("*.partial"))


def test_disk_space_is_checked_before_the_first_byte(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(UserError, match=rf"{TEST_MASKS}: no room on the disk for 10\.1 MB; choose another --data DIR"):
        run(server, tmp_path, *FETCH)
    assert TEST_MASKS not in dict(server.requests)


def test_everything_is_fetched_once(server, tmp_path):
    data = tmp_path / "new" / "ISIC2017"
    parts = [f"{prefix}_{part}" for prefix in PREFIXES.values() for part in (LABELS, MASKS, IMAGES)]
    assert run(server, data) == parts
    for split, ids in IDS.items():
        samples = read_split(data, split)
        assert [(sample.id, sample.label) for sample in samples] == [(f"ISIC_{n:07}", 0 if n % 2 else 2) for n in ids]
        assert all(sample.mask for sample in samples)
    assert sum(path.is_file() for path in data.rglob("*")) == 7 * 2 + 3 + 3 + 1  # and "more", labels, the lock
    assert run(server, data) == []


def test_a_second_download_into_the_same_folder_is_refused(server, tmp_path):
    with FileLock(tmp_path / ".download.lock"), pytest.raises(UserError, match="another process downloads into it"):
        run(server, tmp_path)
    assert server.requests == [] and names(tmp_path) == set()


def test_what_is_missing_is_fetched_again_and_nothing_else(server, tmp_path):
    run(server, tmp_path, "--splits", "test")
    (tmp_path / "ISIC-2017_Test_v2_Data/ISIC_0000031.jpg").unlink()
    assert run(server, tmp_path, "--splits", "test") == [TEST_IMAGES]
    mask = tmp_path / f"{TEST_FOLDER}/ISIC_0000031_segmentation.png"
    mask.write_bytes(mask.read_bytes()[:5])
    with pytest.raises(UserError, match=r"ISIC_0000031_segmentation\.png: there with other content.*move it away"):
        run(server, tmp_path, "--splits", "test")
    mask.unlink()
    assert run(server, tmp_path, "--splits", "test") == []  # the archive is still there
    assert read_split(tmp_path, "test")[1].mask == mask


def test_other_md5_is_told_and_can_be_overridden(server, tmp_path):
    server.files[TEST_MASKS] = body = masks("test", b"other")
    with pytest.raises(UserError, match=rf"its MD5 is {hashlib.md5(body).hexdigest()}, expected .*--no-verify"):
        run(server, tmp_path, "--splits", "test")
    assert not (tmp_path / TEST_FOLDER).exists()
    assert run(server, tmp_path, "--splits", "test", "--no-verify") == [TEST_IMAGES]
    assert len(read_split(tmp_path, "test")) == 2


@pytest.mark.parametrize("theirs", [True, False])
def test_a_stop_while_unpacking(server, tmp_path, monkeypatch, theirs, capsys):
    """The next call goes on; an archive fetched here is removed then, one that lay there is kept."""
    flags = ["--splits", "test", "--masks-only"]
    if theirs:
        (tmp_path / TEST_MASKS).write_bytes(server.files[TEST_MASKS])

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(shutil, "copyfileobj", lambda *_: signal.raise_signal(signal.SIGINT))
        run_script(lambda: run(server, tmp_path, *flags))
    assert stop.value.code == 130 and "the same command goes on where it was" in capsys.readouterr().err
    assert names(tmp_path) > {TEST_LABELS} and not list(tmp_path.rglob("*.png*"))
    assert run(server, tmp_path, *flags) == []
    assert names(tmp_path) == {TEST_LABELS, TEST_FOLDER} | ({TEST_MASKS} if theirs else set())


@pytest.mark.parametrize(("body", "message"), [(b"<html>Sign in", "no column"), (None, "3 labels, expected 2")])
def test_label_files_are_read_before_they_count(server, tmp_path, body, message):
    server.files[TEST_LABELS] = body or server.files[f"ISIC-2017_Training_{LABELS}"]
    for _ in range(2):  # fetched; then as a file of the user's
        with pytest.raises(UserError, match=rf"{message}.*; delete it, and it is fetched again"):
            run(server, tmp_path, "--splits", "test")
        assert not (tmp_path / "ISIC-2017_Test_v2_Data").exists()
        (tmp_path / TEST_LABELS).write_bytes(server.files[TEST_LABELS])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"A/x": b"1", "../evil": b"2"}, "leaves the folder"),
        ({"A/x": b"1", "/evil": b"2"}, "leaves the folder"),
        ({"A/x": b"1", "A/mine": b"Mine"}, "A/mine: there with other content .*move it away"),
    ],
)
def test_bad_archives_write_nothing(tmp_path, entries, message):
    (tmp_path / "out/A").mkdir(parents=True)
    (tmp_path / "out/A/mine").write_bytes(b"mine")
    (tmp_path / "bad.zip").write_bytes(zipped(entries))
    with pytest.raises(UserError, match=message):
        extract(tmp_path / "bad.zip", tmp_path / "out")
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.zip", "out", "A", "mine"}
    assert (tmp_path / "out/A/mine").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b.replace(b"content", b"confent", 1), lambda b: b""])
def test_damaged_archives_leave_no_half_file(tmp_path, damage):
    (tmp_path / "bad.zip").write_bytes(damage(zipped({"A/x": b"content"})))
    with pytest.raises(UserError, match=r"bad\.zip: damaged, or no zip archive .*fetch it again"):
        extract(tmp_path / "bad.zip", tmp_path)
    assert not list(tmp_path.glob("A/*"))
