"""Prepared images: decoded once, found again by content, whole or not used, whatever is killed, full or damaged."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import UserError
from utils.data import cache as cache
from utils.data.cache import in_order, pair_fault, prepare
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import Sample, read_split
from utils.data.transforms import CENTER, TEST_PATCHES, TRAIN_TRANSFORMS, Patch, take
from utils.inference.classification import cache_sizes
from utils.logger import log

ROOT = Path(__file__).resolve().parents[2]
SIZE = (48, 32)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no time of change and no deleted file")

BUILDER = """
import pickle, sys, time
from pathlib import Path
from utils.data import cache
from utils.logger import start_logging
decode, decoded = cache.read_image, []
def slow(path, size):
    time.sleep(0.1)
    decoded.append(path)
    return decode(path, size)
cache.read_image = slow
start_logging()
{before}
made = cache.prepare(pickle.loads(Path(sys.argv[1]).read_bytes()), (48, 32), Path(sys.argv[2]))
print("decoded", len(decoded), made.path.name, flush=True)
"""


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged during the test."""
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The photographs that are decoded in this process during the test, by the real decoder."""
    found = []

    def recorded(path: Path, size: tuple[int, int]) -> np.ndarray:
        found.append(path)
        return read_image(path, size)

    monkeypatch.setattr(cache, "read_image", recorded)
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


@pytest.fixture
def builders(samples, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes that prepare the ten samples, slowly: about half a second on two cores."""
    (tmp_path / "samples").write_bytes(pickle.dumps(samples))
    started = []

    def start(before: str = "") -> subprocess.Popen:
        command = [sys.executable, "-c", BUILDER.format(before=before), str(tmp_path / "samples"), str(tmp_path / "c")]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == suffix)


def recorded(folder: Path) -> int:
    """How many of ten images the unfinished cache in `folder` has, pixels and checksum; -1 without one."""
    for path in folder.glob("v*.partial"):
        checksums = path.read_bytes()[-32 - 4 * 10 : -32]
        return int(np.count_nonzero(np.frombuffer(checksums, "<u4")))
    return -1


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_center_is_kept_beside_the_whole_image(samples, tmp_path):
    plain, made = (
        prepare(samples, SIZE, tmp_path, masks=False),
        prepare(samples, SIZE, tmp_path, masks=False, center=(30, 20)),
    )
    assert made.path != plain.path and made.pixels().shape == plain.pixels().shape == (len(samples), 32, 48, 3)
    for made_ in (
        made,
        prepare(samples, SIZE, tmp_path, masks=False, center=(30, 20)),
        pickle.loads(pickle.dumps(made)),
    ):
        for index, sample in enumerate(samples):
            frame, center = made_.image(index)
            assert np.array_equal(frame, read_image(sample.image, SIZE)) and np.array_equal(
                frame, made_.pixels()[index]
            )
            assert np.array_equal(center, take(read_image(sample.image), CENTER, (30, 20)))
    assert np.array_equal(plain.image(0), plain.pixels()[0])


def test_patches_of_a_fifth_are_as_sharp_as_those_of_originals(isic2017_fullsize, tmp_path):
    """Their finest octave keeps its energy; from the whole image alone, at 2.5 × the network's size, a third does."""
    samples = read_split(isic2017_fullsize, "train", leave_out_copies=False)
    samples = [sample for sample in samples if image_size(sample.image)[0] > 1120]
    size, center = cache_sizes(samples, (224, 224), TRAIN_TRANSFORMS["patches"])
    assert (size, center) == ((560, 560), (448, 448))
    made = prepare(samples, size, tmp_path, masks=False, center=center)

    def finest(pixels: np.ndarray, patch: Patch) -> float:
        grey = cv2.cvtColor(take(pixels, patch, (224, 224)), cv2.COLOR_RGB2GRAY).astype(np.float32)
        return float((grey - cv2.pyrUp(cv2.pyrDown(grey)))[8:-8, 8:-8].var())

    patches = [patch for patch in TEST_PATCHES["9"] if patch[2] == 0.2]
    originals = [[finest(read_image(sample.image), patch) for patch in patches] for sample in samples]
    with_center = [[finest(made.image(index), patch) for patch in patches] for index in range(len(samples))]
    without = [[finest(made.pixels()[index], patch) for patch in patches] for index in range(len(samples))]
    assert len(samples) >= 10 and 0.95 < np.median(np.divide(with_center, originals)) < 1.05
    assert np.median(np.divide(without, originals)) < 0.5


def test_pixels_are_the_whole_frame_and_the_mask(samples, tmp_path):
    """Old fault: centre crops, so that border pixels were never scored. Marks in all four corners survive."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:8, :8], image[:8, -8:], image[-8:, :8], image[-8:, -8:] = 60, 120, 180, 240
    Image.fromarray(image).save(samples[0].image)
    samples[1] = Sample(samples[1].id, samples[1].image, None, None)
    made = prepare(samples, SIZE, tmp_path / "cache")
    pixels = made.pixels()
    assert isinstance(pixels, np.memmap) and pixels.dtype == np.uint8 and pixels.shape == (10, 32, 48, 4)
    assert made.samples == tuple(samples) and not pixels.flags.writeable
    assert [int(pixels[0, y, x, 0]) for y in (1, -2) for x in (1, -2)] == [60, 120, 180, 240]
    for index, sample in enumerate(samples):
        assert np.array_equal(pixels[index, ..., :3], read_image(sample.image, SIZE))
        expected = read_mask(sample.mask, SIZE) if sample.mask else np.zeros((32, 48))
        assert np.array_equal(pixels[index, ..., 3], expected)
    without = prepare(samples, SIZE, tmp_path / "cache", masks=False)
    assert np.array_equal(without.pixels(), pixels[..., :3])
    assert np.array_equal(np.load(made.path), pixels)


def test_real_originals(isic2017_fullsize, tmp_path):
    samples = read_split(isic2017_fullsize, "validation")
    pixels = prepare(samples, (168, 112), tmp_path).pixels()
    assert len(samples) == 6
    for index, sample in enumerate(samples):
        assert np.array_equal(pixels[index, ..., :3], read_image(sample.image, (168, 112)))
        assert np.array_equal(pixels[index, ..., 3], read_mask(sample.mask, (168, 112)))


def test_a_store_is_found_again_and_says_nothing(samples, tmp_path, lines, decoded):
    first = prepare(samples, SIZE, tmp_path / "cache")
    size, total = first.path.stat().st_size, sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert len(lines) == 1 and "10 images at 48×32" in lines[0]
    assert f"{size / 1e6:.1f} MB; {tmp_path / 'cache'} holds {total / 1e6:.1f} MB" in lines[0]
    again = prepare(samples, SIZE, tmp_path / "cache")
    assert again == first and np.array_equal(again.pixels(), first.pixels())
    assert len(decoded) == 10 and len(lines) == 1


def test_what_makes_another_store(samples, tmp_path):
    bare = [Sample(sample.id, sample.image, None, None) for sample in samples]
    found = [
        prepare(samples, SIZE, tmp_path / "cache").path,
        prepare(samples, (24, 16), tmp_path / "cache").path,
        prepare(samples[:5], SIZE, tmp_path / "cache").path,
        prepare(samples[::-1], SIZE, tmp_path / "cache").path,
        prepare(samples, SIZE, tmp_path / "cache", masks=False).path,
        prepare(bare, SIZE, tmp_path / "cache").path,
    ]
    assert len(set(found)) == 6 and all(path.is_file() for path in found)
    assert prepare(bare, SIZE, tmp_path / "cache", masks=False).path == found[4]


@POSIX
@pytest.mark.parametrize("settled", [0, 10**18], ids=["index", "no index"])
@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_changed_in_place_is_noticed(samples, tmp_path, monkeypatch, settled, which):
    """Same path, inode, size and time of modification: the time of change tells, or the content."""
    monkeypatch.setattr(cache, "SETTLED", settled)
    path = getattr(samples[3], which)
    with Image.open(path) as image:
        pixels = np.array(image)
    Image.fromarray(pixels).save(path, compress_level=0)
    time.sleep(0.02)  # the clock of the file system has moved on
    first, before = prepare(samples, SIZE, tmp_path / "cache"), path.stat()
    Image.fromarray(255 - pixels).save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    assert (tmp_path / "cache" / "hashes.json").exists() == (settled == 0)
    second = prepare(samples, SIZE, tmp_path / "cache")
    assert second.path != first.path
    assert (second.pixels()[3] != first.pixels()[3]).mean() > 0.2
    assert np.array_equal(second.pixels()[4], first.pixels()[4])


def test_the_index_is_believed_of_unchanged_files_and_of_no_others(samples, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(cache, "SETTLED", 0)
    time.sleep(0.02)
    folder = tmp_path / "cache"
    first = prepare(samples, SIZE, folder)
    index = folder / "hashes.json"
    entries = json.loads(index.read_text())
    assert len(entries) == 20 and all(Path(path).is_file() for path in entries)
    entries[str(samples[0].image)][-1] = "another"
    index.write_text(json.dumps(entries))
    assert prepare(samples, SIZE, folder).path != first.path
    for position in range(4):
        changed = {path: list(entry) for path, entry in entries.items()}
        changed[str(samples[0].image)][position] += 1
        index.write_text(json.dumps(changed))
        assert prepare(samples, SIZE, folder).path == first.path
    for damaged in ("", "{", "[]", "3", json.dumps(dict.fromkeys(entries, 1)), json.dumps({p: [] for p in entries})):
        index.write_text(damaged)
        assert prepare(samples, SIZE, folder).path == first.path
    assert len(decoded) == 20


def test_files_that_have_just_changed_are_hashed_again(samples, tmp_path):
    for sample in samples[1:]:
        os.utime(sample.image, (1e9, 1e9))  # moves the time of change to now
    prepare(samples, SIZE, tmp_path / "cache")
    assert not (tmp_path / "cache" / "hashes.json").exists()


def test_the_index_forgets_files_that_are_gone(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED", 0)
    time.sleep(0.02)
    prepare(samples[:5], SIZE, tmp_path / "cache")
    samples[0].image.unlink()
    prepare(samples[1:], SIZE, tmp_path / "cache")
    entries = json.loads((tmp_path / "cache" / "hashes.json").read_text())
    assert {Path(path) for path in entries} == {
        path for sample in samples for path in (sample.image, sample.mask) if path != samples[0].image
    }


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_moved_or_copied_data_finds_its_store(samples, tmp_path, decoded, move):
    folder = tmp_path / "data"
    folder.mkdir()
    for sample in samples:
        for path in (sample.image, sample.mask):
            path.rename(folder / path.name)

    def there(folder: Path) -> list[Sample]:
        return [Sample(s.id, folder / s.image.name, folder / s.mask.name, None) for s in samples]

    first = prepare(there(folder), SIZE, tmp_path / "cache")
    move(folder, tmp_path / "elsewhere")
    second = prepare(there(tmp_path / "elsewhere"), SIZE, tmp_path / "cache")
    assert second.path == first.path and len(decoded) == 10
    assert second.samples[0].image.parent == tmp_path / "elsewhere"


@pytest.mark.parametrize("moment", [0, 1, 6, "whole", "long ago"])
def test_a_killed_build_goes_on_where_it_was(samples, tmp_path, builders, decoded, lines, moment):
    cache = tmp_path / "c"
    if moment == "whole":  # all is written, and nothing renamed
        process = builders("import os; cache.os.fsync = lambda file: os.kill(os.getpid(), 9)")
    else:
        process = builders()
        least = 4 if moment == "long ago" else moment
        until(lambda: recorded(cache) >= least)
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = recorded(cache)
    assert done == 10 if moment == "whole" else least <= done < 10
    if moment == "long ago":
        os.utime(next(cache.glob("v*.partial")), (1e9, 1e9))
    assert names(cache, ".npy") == []

    made = prepare(samples, SIZE, cache)
    assert len(decoded) == 10 - done
    assert ("going on" in lines[0]) == (done > 0) and len(lines) == 1 + (done > 0)
    assert names(cache, ".partial") == [] and names(cache, ".npy") == [made.path.name]
    assert made.path.read_bytes() == prepare(samples, SIZE, tmp_path / "fresh").path.read_bytes()


@pytest.mark.parametrize("damage", ["pixels", "key", "length"])
def test_an_unfinished_store_is_trusted_no_further_than_its_checksums(samples, tmp_path, builders, decoded, damage):
    cache = tmp_path / "c"
    process = builders()
    until(lambda: recorded(cache) >= 5)
    process.kill()
    process.wait()
    partial = next(cache.glob("*.partial"))
    content = bytearray(partial.read_bytes())
    if damage == "pixels":
        content[128 + 2 * 48 * 32 * 4 + 1000] ^= 1  # of the third image
    elif damage == "key":
        content[-1] ^= 1
    partial.write_bytes(content[:-1] if damage == "length" else content)
    made = prepare(samples, SIZE, cache)
    assert len(decoded) == (8 if damage == "pixels" else 10)
    assert made.path.read_bytes() == prepare(samples, SIZE, tmp_path / "fresh").path.read_bytes()


def test_two_processes_build_one_store(builders, tmp_path, samples):
    first = builders()
    until(lambda: recorded(tmp_path / "c") >= 1)
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish before the other is there
    second = builders()
    assert "waiting for another process" in second.stdout.readline()
    first.send_signal(signal.SIGCONT)
    output = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    results = [text.splitlines()[-1].split()[1:] for text in output]
    assert [count for count, _ in results] == ["10", "0"] and results[0][1] == results[1][1]
    assert names(tmp_path / "c", ".npy") == [results[0][1]] and names(tmp_path / "c", ".partial") == []
    pixels = np.load(tmp_path / "c" / results[0][1])
    assert np.array_equal(pixels, prepare(samples, SIZE, tmp_path / "fresh").pixels())


def test_who_waits_for_a_builder_that_is_killed_goes_on_with_its_work(builders, tmp_path, samples):
    cache = tmp_path / "c"
    first = builders()
    until(lambda: recorded(cache) >= 1)
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish before the other is there
    second = builders()
    assert "waiting for another process" in second.stdout.readline()
    done = recorded(cache)
    first.kill()
    output = second.communicate(timeout=60)[0].splitlines()
    assert second.returncode == 0 and f"going on with {done} of 10" in output[0]
    assert output[-1].split()[:2] == ["decoded", str(10 - done)] and 1 <= done < 10
    made = np.load(cache / output[-1].split()[2])
    assert np.array_equal(made, prepare(samples, SIZE, tmp_path / "fresh").pixels())


def flip(position: int) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        content = bytearray(content)
        content[position] ^= 1
        return bytes(content)

    return flipped


@pytest.mark.parametrize(
    "damage,reason",
    [
        (lambda content: content[:-1], "bytes long, not"),
        (lambda content: content + b"\0", "bytes long, not"),
        (lambda content: b"", "0 bytes long, not"),
        (flip(40), "its header is not right"),
        (flip(128), "the checksum of image 1 is wrong"),
        (flip(-32 - 40 - 1), "the checksum of image 10 is wrong"),
        (flip(-32 - 20), "the checksum of image 6 is wrong"),
        (flip(-1), "made of other files or by another version"),
    ],
    ids=["short", "long", "empty", "header", "first pixel", "last pixel", "checksum", "key"],
)
def test_a_store_in_doubt_is_made_anew(samples, tmp_path, lines, decoded, damage, reason):
    path = prepare(samples, SIZE, tmp_path / "cache").path
    content = path.read_bytes()
    path.write_bytes(damage(content))
    again = prepare(samples, SIZE, tmp_path / "cache")
    assert again.path == path and path.read_bytes() == content and len(decoded) == 20
    assert len(lines) == 3 and reason in lines[1] and str(path) in lines[1] and "\n" not in lines[1]
    assert np.array_equal(again.pixels()[9, ..., :3], read_image(samples[9].image, SIZE))


def test_old_versions_and_leftovers_go_and_the_rest_stays(samples, tmp_path):
    cache, hour = tmp_path / "cache", 3600
    other = prepare(samples, (24, 16), cache).path.name
    gone = ["0123456789abcdef.npy", "v2-0123456789abcdef.npy", "v4-0123456789abcdef.npy"]
    gone += ["0123456789abcdef.77.partial", "v3-0123456789abcdef.partial", "hashes.77.partial"]
    kept = [other, "v3-fedcba9876543210.npy", "notes.npy", "0123456789abcdef.npy.txt", "v3-fedcba9876543210.partial"]
    for name in (*gone, *kept[1:]):
        (cache / name).write_bytes(b"x")
    for name in (*gone[3:], *kept):
        age = hour if name.endswith("10.partial") else 25 * hour
        os.utime(cache / name, (time.time() - age,) * 2)
    made = prepare(samples, SIZE, cache).path.name
    assert {path.name for path in cache.iterdir()} - {"lock", "hashes.json"} == {*kept, made}


def test_another_version_of_the_pipeline_makes_its_own_store(samples, tmp_path, monkeypatch):
    first = prepare(samples, SIZE, tmp_path / "cache").path
    monkeypatch.setattr(cache, "STORE_VERSION", cache.STORE_VERSION + 1)
    second = prepare(samples, SIZE, tmp_path / "cache").path
    assert second.is_file() and not first.exists()
    assert second.name.split("-")[1] != first.name.split("-")[1]


def test_no_room_at_the_start(samples, full_soon, decoded):
    with pytest.raises(UserError, match=r"no room for the prepared images, 2\.5 MB \(No space .*--cache"):
        prepare(samples, (288, 288), full_soon, masks=False)
    assert decoded == [] and {path.name for path in full_soon.iterdir()} <= {"lock", "hashes.json"}


def test_a_disk_that_fills_up_keeps_neither_store_nor_leftover(samples, full_soon, monkeypatch):
    started = []

    def fill(path: Path, size: tuple[int, int]) -> np.ndarray:
        started.append(path)
        if len(started) == 4:
            with pytest.raises(OSError), (full_soon / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        return read_image(path, size)

    monkeypatch.setattr(cache, "read_image", fill)
    with pytest.raises(UserError, match=r"no room for the prepared images, 0\.2 MB"):
        prepare(samples, (80, 64), full_soon)
    assert {path.name for path in full_soon.iterdir()} <= {"lock", "hashes.json", "filler"}
    (full_soon / "filler").unlink()
    assert len(prepare(samples, (80, 64), full_soon).pixels()) == 10


def test_an_index_that_finds_no_room_is_done_without(samples, full_soon, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED", 0)
    time.sleep(0.02)
    first = prepare(samples, SIZE, full_soon)
    (full_soon / "hashes.json").unlink()
    with pytest.raises(OSError), (full_soon / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert prepare(samples, SIZE, full_soon) == first
    assert {path.name for path in full_soon.iterdir()} == {"lock", "filler", first.path.name}


def test_a_store_is_found_where_nothing_can_be_written(samples, full_soon):
    first = prepare(samples, SIZE, full_soon)
    subprocess.run(["mount", "-o", "remount,ro", str(full_soon)], check=True)
    assert prepare(samples, SIZE, full_soon) == first
    with pytest.raises(UserError, match=r"cannot be written there \(.*; choose --cache DIR"):
        prepare(samples[:3], SIZE, full_soon)


def test_a_folder_that_cannot_be_written_is_named(samples, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file: the prepared images cannot be written .* --cache"):
        prepare(samples, SIZE, tmp_path / "file")


@pytest.mark.parametrize("count", [1, 5, 7])
def test_unreadable_files_are_named_and_leave_no_store(samples, tmp_path, count):
    for index in range(3, 3 + count):
        photograph = samples[index].image.with_suffix(".jpg")
        Image.open(samples[index].image).save(photograph, quality=95)
        photograph.write_bytes(photograph.read_bytes()[:-300])
        samples[index] = Sample(samples[index].id, photograph, samples[index].mask, None)
    with pytest.raises(UserError) as error:
        prepare(samples, SIZE, tmp_path / "cache")
    message = str(error.value)
    assert [f"{tmp_path / str(index)}.jpg: truncated" in message for index in range(3, 3 + count)] == (
        [True] * min(5, count) + [False] * (count - 5)
    )
    assert ("(and 2 more files" in message) == (count == 7) and "\n" not in message
    assert names(tmp_path / "cache", ".npy") == names(tmp_path / "cache", ".partial") == []


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        ((96, 64), ""),
        ((48, 32), ""),  # mirrors have resized ones
        ((64, 64), ""),  # and squashed ones
        ((64, 96), "lies on its side"),
        ((96, 7), "too small"),
    ],
)
def test_a_mask_that_cannot_be_its_image_s_is_told(mask, fault):
    assert pair_fault((96, 64), mask).startswith(fault) and bool(pair_fault((96, 64), mask)) == bool(fault)


def test_files_that_are_not_there_are_named(samples, tmp_path):
    samples[2].image.unlink()
    samples[4].mask.unlink()
    samples[5].mask.unlink()
    samples[5].mask.mkdir()
    with pytest.raises(UserError, match=r"2\.png: no such file; .*4_m\.png: no such file; .*5_m\.png: not readable"):
        prepare(samples, SIZE, tmp_path / "cache")


def test_a_file_that_changes_while_it_is_decoded_makes_no_store(samples, tmp_path, monkeypatch):
    """Its pixels would stand under the hash of what was there before."""

    def changing(path: Path, size: tuple[int, int]) -> np.ndarray:
        if path == samples[6].image:
            Image.new("RGB", (96, 64)).save(path)
        return read_image(path, size)

    monkeypatch.setattr(cache, "read_image", changing)
    with pytest.raises(UserError, match=r"6\.png: changed while it was read"):
        prepare(samples, SIZE, tmp_path / "cache")
    assert names(tmp_path / "cache", ".npy") == names(tmp_path / "cache", ".partial") == []


@POSIX
def test_a_store_in_use_outlives_its_file(samples, tmp_path):
    """The folder can be deleted at any time, be it while a run trains: it scores by its caches hours later."""
    made = prepare(samples, SIZE, tmp_path / "cache")
    before = np.array(made.pixels())
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(made.pixels(), before)


def test_a_store_travels_to_another_process_by_its_path(samples, tmp_path):
    made = prepare(samples, SIZE, tmp_path / "cache")
    sent = pickle.dumps(made)
    assert len(sent) < 3000 < made.pixels().nbytes
    there = pickle.loads(sent)
    assert there == made and isinstance(there.pixels(), np.memmap) and np.array_equal(there.pixels(), made.pixels())


def test_in_order_takes_items_only_as_needed():
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, lambda number: number**2, items(), ahead=8)
        assert [next(results) for _ in range(3)] == [0, 1, 4] and len(taken) == 10
        assert list(results) == [number**2 for number in range(3, 100)]
