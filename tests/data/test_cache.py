"""Prepared images: decoded once, found again by content, whole or not used, whatever is stopped, full or damaged."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from utils import UserError
from utils.data import cache
from utils.data.cache import prepare
from utils.data.images import read_image, read_mask
from utils.data.isic import Sample
from utils.data.transforms import CENTER, take
from utils.files import locked

SIZE = (48, 32)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no time of change and no deleted file")
BUILDER = """
import os, pickle, sys
from pathlib import Path
from utils.data import cache
from utils.logger import start_logging
{before}
start_logging()
cache.prepare(pickle.loads(Path(sys.argv[1]).read_bytes()), (48, 32), Path(sys.argv[2]))
"""
KILLED = """
decode = cache.read_image
cache.read_image = lambda path, size: os.kill(os.getpid(), 9) if path.stem == "5" else decode(path, size)"""


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The photographs that are decoded in this process during the test."""
    found = []
    monkeypatch.setattr(cache, "read_image", lambda path, size: found.append(path) or read_image(path, size))
    return found


@pytest.fixture
def full_soon(tmp_path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def frames(made: cache.ImageCache) -> np.ndarray:
    """All whole images, of one size: uint8 [N, H, W, channels]."""
    return np.stack([made.frame(index) for index in range(len(made.samples))])


def builder(samples: list[Sample], folder: Path, before: str = "") -> subprocess.Popen:
    """A process that prepares the samples in the folder."""
    (folder.parent / "samples").write_bytes(pickle.dumps(samples))
    command = [sys.executable, "-c", BUILDER.format(before=before), str(folder.parent / "samples"), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_pixels_are_the_whole_frame_and_the_mask(samples, tmp_path):
    """Old fault: centre crops, so that border pixels were never scored. Marks in all four corners survive."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:8, :8], image[:8, -8:], image[-8:, :8], image[-8:, -8:] = 60, 120, 180, 240
    Image.fromarray(image).save(samples[0].image)
    samples[1] = Sample(samples[1].id, samples[1].image, None, None)
    made = prepare(samples, SIZE, tmp_path / "cache")
    pixels = frames(made)
    first = made.frame(0)
    assert isinstance(first, np.memmap) and first.dtype == np.uint8 and pixels.shape == (10, 32, 48, 4)
    assert made.samples == tuple(samples) and not first.flags.writeable
    assert [int(pixels[0, y, x, 0]) for y in (1, -2) for x in (1, -2)] == [60, 120, 180, 240]
    for index, sample in enumerate(samples):
        assert np.array_equal(pixels[index, ..., :3], read_image(sample.image, SIZE))
        expected = read_mask(sample.mask, SIZE) if sample.mask else np.zeros((32, 48))
        assert np.array_equal(pixels[index, ..., 3], expected)
    without = prepare(samples, SIZE, tmp_path / "cache", masks=False)
    assert np.array_equal(frames(without), pixels[..., :3])
    assert np.array_equal(np.load(made.path), pixels.ravel())


def test_a_center_is_kept_beside_the_whole_image(samples, tmp_path):
    plain = prepare(samples, SIZE, tmp_path, masks=False)
    made = prepare(samples, lambda original: (SIZE, (30, 20)), tmp_path, masks=False)
    assert made.path != plain.path and frames(made).shape == frames(plain).shape == (10, 32, 48, 3)
    assert np.array_equal(plain.image(0), plain.frame(0))
    for each in (made, pickle.loads(pickle.dumps(made))):
        for index, sample in enumerate(samples):
            frame, center = each.image(index)
            assert np.array_equal(frame, read_image(sample.image, SIZE)) and np.array_equal(frame, each.frame(index))
            assert np.array_equal(center, take(read_image(sample.image), CENTER, (30, 20)))


def test_it_is_found_again_where_data_was_copied_and_says_nothing(samples, tmp_path, lines, decoded):
    first = prepare(samples, SIZE, tmp_path / "cache")
    assert len(lines) == 1 and "10 images at 48×32" in lines[0] and f"{tmp_path / 'cache'} holds 6" in lines[0]
    there = [replace(s, image=s.image.with_name(f"copy{s.id}"), mask=s.mask.with_name(f"mask{s.id}")) for s in samples]
    for one, other in zip(samples, there, strict=True):
        shutil.copyfile(one.image, other.image)
        shutil.copyfile(one.mask, other.mask)
    again = prepare(there, SIZE, tmp_path / "cache")
    assert again.path == first.path and again.samples == tuple(there)
    assert len(decoded) == 10 and len(lines) == 1


def test_what_makes_another_cache(samples, tmp_path):
    bare = [Sample(sample.id, sample.image, None, None) for sample in samples]
    arguments = [(samples, SIZE), (samples, (24, 16)), (samples[:5], SIZE), (samples[::-1], SIZE), (bare, SIZE)]
    found = [prepare(*each, tmp_path / "cache").path for each in arguments]
    found.append(prepare(samples, SIZE, tmp_path / "cache", masks=False).path)
    assert len(set(found)) == 6 and all(path.is_file() for path in found)
    assert prepare(bare, SIZE, tmp_path / "cache", masks=False).path == found[5]


@POSIX
@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_changed_in_place_is_noticed(samples, tmp_path, which):
    """Same path, inode, size and time of modification: the time of change tells."""
    path = getattr(samples[3], which)
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels).save(path, compress_level=0)
    time.sleep(0.02)  # the clock of the file system has moved on
    first, before = prepare(samples, SIZE, tmp_path / "cache"), path.stat()
    Image.fromarray(255 - pixels).save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = prepare(samples, SIZE, tmp_path / "cache")
    assert second.path != first.path and (second.frame(3) != first.frame(3)).mean() > 0.2
    assert np.array_equal(second.frame(4), first.frame(4))


def test_the_index_spares_unchanged_files_the_hashing(samples, tmp_path, decoded):
    folder, index = tmp_path / "cache", tmp_path / "cache" / "hashes.json"
    first = prepare(samples, SIZE, folder)
    entries = json.loads(index.read_text())
    assert len(entries) == 20
    index.write_text(json.dumps(dict.fromkeys(entries, "another")))
    assert prepare(samples, SIZE, folder).path != first.path
    os.utime(samples[0].image)
    index.write_text(json.dumps(entries))
    for damaged in (None, "", "{", "[]"):
        if damaged is not None:
            index.write_text(damaged)
        assert prepare(samples, SIZE, folder).path == first.path
        assert len(json.loads(index.read_text())) == (21 if damaged is None else 20)
    assert len(decoded) == 20


@POSIX
def test_it_outlives_its_file_and_travels_by_its_path(samples, tmp_path):
    """The folder can be deleted at any time, be it while a run trains: it scores by its caches hours later."""
    made = prepare(samples, SIZE, tmp_path / "cache")
    before, sent = frames(made), pickle.dumps(made)
    there = pickle.loads(sent)
    assert len(sent) < 4000 < before.nbytes and isinstance(there.frame(0), np.memmap)
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(frames(made), before) and np.array_equal(frames(there), before)


def test_what_a_killed_build_left_is_no_cache_and_goes(samples, tmp_path, decoded):
    folder = tmp_path / "c"
    assert builder(samples, folder, KILLED).wait(60) == -signal.SIGKILL
    assert [path.suffix for path in folder.glob("v*")] == [".partial"]
    made = prepare(samples, SIZE, folder)
    assert len(decoded) == 10 and [path.name for path in folder.glob("v*")] == [made.path.name]
    assert made.path.read_bytes() == prepare(samples, SIZE, tmp_path / "fresh").path.read_bytes()


def test_who_waits_for_another_process_uses_what_that_has_built(samples, tmp_path, decoded):
    folder = tmp_path / "c"
    folder.mkdir()
    with locked(folder / "lock", "busy"):
        other = builder(samples, folder, "cache.read_image = None")  # so that it could not decode
        assert "waiting for another process that prepares images there" in other.stdout.readline()
        path = prepare(samples, SIZE, folder).path
    assert other.wait(60) == 0 and list(folder.glob("*.npy")) == [path] and len(decoded) == 10


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b""])
def test_a_damaged_cache_is_made_anew(samples, tmp_path, decoded, damage):
    path = prepare(samples, SIZE, tmp_path / "cache").path
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = prepare(samples, SIZE, tmp_path / "cache")
    assert again.path == path and path.read_bytes() == content and len(decoded) == 20


def test_caches_of_other_versions_go_and_the_rest_stays(samples, tmp_path):
    gone = ["v3-0123456789abcdef.npy", "v4-0123456789abcdef.npy.7.partial"]
    names = [*gone, "v4-fedcba9876543210.npy", "notes.npy", "v2-notes.txt", "val-images.npy", "v2-images.partial"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    prepare(samples, SIZE, tmp_path)
    assert [name for name in names if not (tmp_path / name).exists()] == gone


def test_a_disk_that_fills_up_keeps_neither_cache_nor_leftover(samples, full_soon, monkeypatch):
    with pytest.raises(UserError, match=r"small: no room for the prepared images, 2\.5 MB; make some, .*--cache"):
        prepare(samples, (288, 288), full_soon, masks=False)
    with monkeypatch.context() as patch:
        full = lambda path, size: (path == samples[3].mask and fill(full_soon)) or read_mask(path, size)  # noqa: E731
        patch.setattr(cache, "read_mask", full)
        with pytest.raises(UserError, match=r"small: the prepared images cannot be written there .*No space .*--cache"):
            prepare(samples, (80, 64), full_soon)
    assert {path.name for path in full_soon.iterdir()} <= {"lock", "hashes.json", "filler"}
    (full_soon / "filler").unlink()
    assert frames(prepare(samples, (80, 64), full_soon)).shape == (10, 64, 80, 4)


def test_it_is_found_where_nothing_can_be_written(samples, full_soon):
    first = prepare(samples, SIZE, full_soon)
    (full_soon / "hashes.json").unlink()
    fill(full_soon)
    assert prepare(samples, SIZE, full_soon).path == first.path and not (full_soon / "hashes.json").exists()
    subprocess.run(["mount", "-o", "remount,ro", str(full_soon)], check=True)
    assert prepare(samples, SIZE, full_soon).path == first.path
    with pytest.raises(UserError, match=r"cannot be written there \(.*; choose --cache DIR"):
        prepare(samples[:3], SIZE, full_soon)


def test_what_is_not_there_is_named(samples, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file: the prepared images cannot be written .* --cache"):
        prepare(samples, SIZE, tmp_path / "file")
    samples[2].image.unlink()
    samples[4].mask.unlink()
    with pytest.raises(UserError, match=r"2\.png: no such file; .*4_m\.png: no such file"):
        prepare(samples, SIZE, tmp_path / "cache")
