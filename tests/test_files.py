"""Files: quoting and lists in messages, JSON, digests, and locks between processes."""

import hashlib
import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils import UserError
from utils.files import check_file, listed, load_json, locked, quoted, readable_size, sha256

HOLDER = """
import sys
from pathlib import Path
from utils.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "value,expected",
    [
        ("ISIC_0000001 données", "ISIC_0000001 données"),
        ("two\nlines \x1b[2J", r"'two\nlines \x1b[2J'"),
        (7, "7"),
        (None, "None"),
        ("x" * 121, "x" * 119 + "…"),
    ],
)
def test_quoted(value, expected):
    assert quoted(value) == expected and quoted(value).isprintable()


def test_listed_and_readable_sizes():
    assert listed(["a"]) == "a" and listed("abc") == "a, b, c" and listed("abcdefg") == "a, b, c and 4 more"
    assert listed(["a\n", "b"], most=1) == r"'a\n' and 1 more" and listed(["x" * 200], longest=50) == "x" * 49 + "…"
    sizes = (999, 1000, 62_400, 5_800_000_000)
    assert [readable_size(count) for count in sizes] == ["999 bytes", "1.0 kB", "62.4 kB", "5.8 GB"]


def test_sha256_of_a_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at a time
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    for path, reason in ((tmp_path / "gone", "no such file"), (tmp_path, r"not readable \(a folder\)")):
        with pytest.raises(UserError, match=reason):
            sha256(path)
    with pytest.raises(UserError, match="not readable"):
        check_file("a\0b")


def test_json_that_cannot_be_worked_with_is_a_value_error(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"a": [1, None]}))
    assert load_json(path) == {"a": [1, None]}
    for text in ("[]", "3", "{", ""):
        path.write_text(text)
        with pytest.raises(ValueError):
            load_json(path)


def test_a_lock_is_one_process_s_until_that_ends(tmp_path, caplog):
    """However it ends: the other is killed. Within a process it may be taken twice."""
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use"), locked(lock, "in use"):
            pass
    finally:
        other.kill()
        other.communicate()
    with locked(lock, "in use"), locked(lock, "in use", wait=True):
        pass
