"""Unpacking: what is in the archive arrives whole, and what should not be in one leaves no trace."""

import io
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from utils import UserError
from utils.data import archive
from utils.data.archive import BLOCK, extract

CONTENT = bytes(range(256)) * 16


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about names that are there twice
        for name, content in entries:
            file.writestr(name, content, method)
    return path


def patched(path: Path, old: bytes, new: bytes, times: int) -> Path:
    content = path.read_bytes()
    assert content.count(old) == times, "the test's archive is not as the test believes"
    path.write_bytes(content.replace(old, new))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def special(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["A/ISIC_1.jpg", "A/a.csv"], ["A/ISIC_1.jpg", "A/a.csv"]),
        (["A/A/deep/er (1)/ISIC_1.jpg"], ["A/A/deep/er (1)/ISIC_1.jpg"]),
        (["A/", "A/ISIC_1.jpg", "B/"], ["A/ISIC_1.jpg"]),
        (["ISIC_1.jpg"], ["name/ISIC_1.jpg"]),
        (["ISIC_1.jpg", "name/ISIC_2.jpg"], ["name/ISIC_1.jpg", "name/name/ISIC_2.jpg"]),
        (["A/x.jpg", "__MACOSX/A/._x.jpg", "A/._x.jpg", ".DS_Store", "A/.DS_Store", "A/Thumbs.db"], ["A/x.jpg"]),
        ([], []),
    ],
)
def test_everything_arrives_where_it_belongs(tmp_path, names, expected):
    path = zipped(tmp_path / "name.zip", *((name, b"" if name.endswith("/") else CONTENT) for name in names))
    assert extract(path, tmp_path / "out") == len(expected)
    assert files(tmp_path / "out") == dict.fromkeys(expected, CONTENT)


BAD_NAMES = [
    "../evil.png", "A/../../evil.png", "..", "A/..", "/evil.png", "//server/evil.png", "C:/evil.png", "C:evil.png",
    "..\\evil.png", "A\\..\\..\\evil.png", "A//evil.png", "./evil.png", "A/evil.png:stream", "evil.png.", "evil.png ",
    "-rf", "ISIC_1.jpg.partial", "A/\nevil.png", "A/évil.png", "~/evil.png", "A/" + 200 * "x",
]  # fmt: skip


def lying_about_size(path: Path, content: bytes, says: int) -> Path:
    zipped(path, ("A/ISIC_1.png", content))
    return patched(path, struct.pack("<L", len(content)), struct.pack("<L", says), 2)


# what is in the archive: (made by, what the message says)
BAD_ARCHIVES = {
    "link": (lambda p: zipped(p, (special("A/l", stat.S_IFLNK), b"../..")), "'A/l'.* link"),
    "link to walk through": (
        lambda p: zipped(p, (special("A/l", stat.S_IFLNK), b"../.."), ("A/l/evil.png", b"x")),
        "'A/l'.* link",
    ),
    "device": (lambda p: zipped(p, (special("A/tty", stat.S_IFCHR), b"")), "'A/tty'.* device"),
    "name twice": (lambda p: zipped(p, ("A/x", b"1"), ("A/x", b"2")), "'A/x'.* twice"),
    "name twice on some systems": (lambda p: zipped(p, ("A/x", b"1"), ("A/X", b"2")), "'A/X'.* twice"),
    "name of a file and a folder": (lambda p: zipped(p, ("A/x/y", b"1"), ("A/x", b"2")), "'A/x/y'.* folder is a file"),
    "the same on some systems": (lambda p: zipped(p, ("a/X", b"1"), ("A/x/y/z", b"2")), "'A/x/y/z'.* folder is a file"),
    "encrypted": (
        lambda p: patched(zipped(p, ("A/x", CONTENT)), b"\x14\0\0\0\x08\0", b"\x14\0\x01\0\x08\0", 2),
        "'A/x': it is encrypted",
    ),
    "bzip2": (lambda p: zipped(p, ("A/x", CONTENT), method=zipfile.ZIP_BZIP2), "'A/x'.* deflate"),
    "bomb": (lambda p: zipped(p, ("A/x", bytes(20 * BLOCK))), r"1 files of 21.0 MB in 20.\d kB .*plausible"),
    "bomb whose header says little": (lambda p: lying_about_size(p, bytes(20 * BLOCK), 100), "damaged.*CRC"),
    "header that says too much": (lambda p: lying_about_size(p, CONTENT, 5000), "damaged.*'A/ISIC_1.png'.* length"),
    "wrong CRC": (
        lambda p: patched(zipped(p, ("A/x", CONTENT), method=zipfile.ZIP_STORED), CONTENT, CONTENT[:-1] + b"!", 1),
        "damaged.*CRC.*'A/x'",
    ),
    "damaged stream": (
        lambda p: patched(zipped(p, ("A/x", CONTENT)), b"A/x\x63", b"A/x\x07", 1),
        "damaged, or no zip archive .*fetch it again",
    ),
    "entry without a name": (
        lambda p: patched(zipped(p, ("A/x", b"1")), b"\x03\0\0\0\0\0\0\0", b"\0" * 8, 1),
        "damaged, or no zip archive",
    ),
    "truncated": (lambda p: p.write_bytes(zipped(p, ("A/x", CONTENT)).read_bytes()[:-30]), "damaged, or no zip"),
    "no zip archive": (lambda p: p.write_bytes(b"<html>Sign in</html>"), "damaged, or no zip archive"),
}
BAD_ARCHIVES |= {
    f"name {name!r}": (lambda p, name=name: zipped(p, (name, b"x")), "path is absolute, leaves .*get another copy")
    for name in BAD_NAMES
}


@pytest.mark.fault(
    "a damaged or hostile archive: links, paths that lead outside, bombs, wrong CRC, names twice",
    "one line that names it; nothing is written",
)
@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archives_write_nothing(tmp_path, kind):
    make, message = BAD_ARCHIVES[kind]
    (tmp_path / "deep").mkdir()
    make(tmp_path / "bad.zip")
    before = files(tmp_path)
    with pytest.raises(UserError, match=rf"(?s)bad\.zip: .*{message}"):
        extract(tmp_path / "bad.zip", tmp_path / "deep" / "out")
    assert files(tmp_path) == before


@pytest.mark.fault("a bad entry after good ones", "one line; nothing is written")
@pytest.mark.parametrize("names", [["A/x", "../evil.png"], ["A/x", "A/y", "A/x"], ["A/x", "A/x/y"]])
def test_everything_is_checked_before_the_first_file_is_written(tmp_path, names):
    with pytest.raises(UserError, match="nothing was unpacked"):
        extract(zipped(tmp_path / "bad.zip", *((name, b"x") for name in names)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("more files or bytes than is plausible", "one line")
@pytest.mark.parametrize(("limit", "value"), [("MOST_FILES", 1), ("LARGEST_TOTAL", len(CONTENT))])
def test_limits_of_count_and_size(tmp_path, monkeypatch, limit, value):
    path = zipped(tmp_path / "a.zip", ("A/x", CONTENT), ("A/y", CONTENT))
    monkeypatch.setattr(archive, limit, value)
    with pytest.raises(UserError, match=r"2 files of 8\.2 kB in .* more than is plausible"):
        extract(path, tmp_path / "out")
    monkeypatch.setattr(archive, limit, 2 * value)
    assert extract(path, tmp_path / "out") == 2


@pytest.mark.fault(
    "an entry with more bytes than its header says",
    "one line; no more than 2 MiB of it are read, no file is left",
)
def test_more_bytes_than_the_headers_say_are_not_written(tmp_path, monkeypatch):
    class Endless(io.BytesIO):
        given = 0

        def read(self, size=-1):
            Endless.given += size
            return bytes(size)

    path = zipped(tmp_path / "a.zip", ("A/x", CONTENT))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: Endless())
    with pytest.raises(UserError, match="'A/x' has another length than the headers say"):
        extract(path, tmp_path / "out")
    assert BLOCK <= Endless.given <= 2 * BLOCK
    assert not files(tmp_path / "out")


@pytest.mark.fault("an unpacked file lost", "it is written again; the others stay untouched")
def test_files_that_are_there_already_stay_untouched(tmp_path):
    path = zipped(tmp_path / "a.zip", ("A/x", CONTENT), ("A/y", CONTENT), ("A/z", b""))
    assert extract(path, tmp_path) == 3
    (tmp_path / "A/y").unlink()
    written = (tmp_path / "A/x").stat().st_mtime_ns
    assert extract(path, tmp_path) == 1
    assert (tmp_path / "A/x").stat().st_mtime_ns == written
    assert extract(path, tmp_path) == 0


@pytest.mark.fault(
    "another file, or a folder, under an entry's name",
    "one line; it stays as it is, nothing is written",
)
@pytest.mark.parametrize("mine", [b"mine", b"!" + CONTENT[1:], b""])
def test_other_files_of_the_same_name_are_never_overwritten(tmp_path, mine):
    path = zipped(tmp_path / "a.zip", ("A/new", CONTENT), ("A/x", CONTENT), ("A/y", CONTENT))
    (tmp_path / "A/y").mkdir(parents=True)
    (tmp_path / "A/x").write_bytes(mine)
    with pytest.raises(UserError, match=r"A/x \(and 1 more\): there with other content than in a.zip.*move it away"):
        extract(path, tmp_path)
    assert (tmp_path / "A/x").read_bytes() == mine
    assert not (tmp_path / "A/new").exists()


@pytest.mark.fault(
    "a file, or a link to nothing, in the place of an entry or of its folder",
    "one line; it stays as it is, nothing is written",
)
@pytest.mark.parametrize("name", ["A/x", "A/x/y/z"])
def test_files_and_links_in_the_way_of_a_name_are_found_before_the_first_file_is_written(tmp_path, name):
    path = zipped(tmp_path / "a.zip", ("A/new", CONTENT), (name, CONTENT))
    (tmp_path / "A").mkdir()
    (tmp_path / "A/x").symlink_to("nothing")
    for _ in range(2):
        with pytest.raises(UserError, match=r"A/x: there with other content than in a.zip.*move it away"):
            extract(path, tmp_path)
        assert not (tmp_path / "A/new").exists()
        (tmp_path / "A/x").unlink()
        (tmp_path / "A/x").write_text("mine")
    assert (tmp_path / "A/x").read_text() == "mine"


@pytest.mark.fault("a kill while a file is unpacked", "the next call removes what was half written, and no other file")
def test_what_a_kill_left_half_written_is_removed(tmp_path):
    path = zipped(tmp_path / "a.zip", ("A/x.jpg", CONTENT))
    (tmp_path / "A").mkdir()
    for name in ("x.jpg.123.partial", "x.jpg.partial", "y.jpg.123.partial"):
        (tmp_path / "A" / name).write_bytes(b"half")
    assert extract(path, tmp_path) == 1
    assert {path.name for path in (tmp_path / "A").iterdir()} == {"x.jpg", "x.jpg.partial", "y.jpg.123.partial"}


@pytest.mark.fault("Ctrl-C while an archive is unpacked", "whole files only; the next call goes on")
def test_an_interruption_leaves_whole_files_only_and_the_next_call_goes_on(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", *((f"A/{n}", CONTENT) for n in range(4)))
    copied, copy = [], archive._copy

    def interrupted(source, target, entry):
        copied.append(entry)
        if len(copied) == 3:
            target.write(b"half")
            raise KeyboardInterrupt
        copy(source, target, entry)

    monkeypatch.setattr(archive, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(path, tmp_path / "out")
    assert files(tmp_path / "out") == {"A/0": CONTENT, "A/1": CONTENT}
    assert extract(path, tmp_path / "out") == 2


@pytest.mark.fault("not enough room for what is in an archive", "one line before the first file")
def test_disk_space_is_checked_first(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", ("A/x", CONTENT))
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3000}))
    with pytest.raises(UserError, match=rf"4\.1 kB needed in {tmp_path}, 3\.0 kB free"):
        extract(path, tmp_path / "not" / "there")
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": len(CONTENT)}))
    extract(path, tmp_path)
    assert extract(path, tmp_path) == 0


@pytest.mark.fault("a folder that cannot be made", "one line")
@pytest.mark.parametrize(
    ("out", "message"),
    [("file", "file: there with"), ("file/below", "file: there with"), ("x" * 300, r"a\.zip: cannot be unpacked into")],
)
def test_folder_that_cannot_be_made(tmp_path, out, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        extract(zipped(tmp_path / "a.zip", ("A/x", CONTENT)), tmp_path / out)
