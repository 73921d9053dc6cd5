"""Synthetic data: the official layout, reproducible to the byte, masks that fit what is drawn."""

import hashlib
import json
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import UserError
from utils.data import synthetic
from utils.data.dermoscopy import SPLIT_STRIDE, draw_label, draw_lesion
from utils.data.isic import SPLITS, read_split
from utils.data.synthetic import main, make_synthetic
from utils.logger import run_script, start_logging

COUNTS = {"train": 5, "validation": 3, "test": 3}
SMALL = (96, 72)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "new" / "synthetic", COUNTS, SMALL)


def test_the_folder_is_read_as_what_was_drawn(folder):
    for number, split in enumerate(SPLITS):
        samples = read_split(folder, split)
        first = 9_000_000 + number * SPLIT_STRIDE
        assert [sample.id for sample in samples] == [f"ISIC_{first + i}" for i in range(COUNTS[split])]
        for i, sample in enumerate(samples):
            image, mask, label = draw_lesion(0, number * SPLIT_STRIDE + i, SMALL)
            stored = cv2.imread(str(sample.image))[..., ::-1]
            assert stored.shape == image.shape == (72, 96, 3)
            assert np.abs(stored.astype(int) - image).mean() < 8  # JPEG's loss; another image differs by far more
            assert np.array_equal(cv2.imread(str(sample.mask), -1), mask) and sample.label == label
    assert (folder / "ISIC-2017_Test_v2_Data/ISIC_9200000.jpg").is_file()
    record = {"format": synthetic.FORMAT, "counts": COUNTS, "size": [96, 72], "seed": 0}
    assert json.loads((folder / "synthetic.json").read_text()) == record


def test_same_seed_same_bytes_and_another_seed_other_images(folder, tmp_path):
    """More training images leave the others as they are; no image is there twice; an empty split is left out."""
    first = digests(folder)
    again = digests(make_synthetic(tmp_path / "again", {**COUNTS, "train": 8, "test": 0}, SMALL))
    kept = [name for name in first if name.endswith(("jpg", "png")) and "Test" not in name]
    assert len(kept) == 2 * 8 and all(again[name] == first[name] for name in kept)
    assert not [name for name in again if "Test" in name]
    images = {digest for name, digest in first.items() if name.endswith("jpg")}
    other = digests(make_synthetic(tmp_path / "other", COUNTS, SMALL, seed=1))
    assert len(images) == 11 and not images & set(other.values())


def test_every_split_holds_every_class_and_large_ones_the_real_balance():
    for seed, start in ((0, 0), (1, SPLIT_STRIDE), (2, 2 * SPLIT_STRIDE)):
        labels = [draw_label(seed, start + i) for i in range(208)]
        assert set(labels[:3]) == {0, 1, 2}
        assert np.bincount(labels[:48]).tolist() == [12, 12, 24]
        assert np.bincount(labels[48:]).tolist() == [30, 20, 110]
    assert len({tuple(draw_label(seed, i) for i in range(48)) for seed in range(5)}) == 5


def test_a_folder_that_is_there_is_left_untouched_and_others_are_refused(tmp_path):
    make_synthetic(tmp_path, {"train": 1}, SMALL)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    assert make_synthetic(tmp_path, {"train": 1}, SMALL) == tmp_path
    for change in ({"seed": 1}, {"size": (72, 96)}, {"counts": {"train": 1, "test": 4}}):
        with pytest.raises(UserError, match="not drawn with these parameters"):
            make_synthetic(tmp_path, **{"counts": {"train": 1}, "size": SMALL, **change})
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def test_folder_with_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "synthetic.json").write_text("the user's")
    with pytest.raises(UserError, match="not drawn with these parameters"):
        make_synthetic(tmp_path, COUNTS, SMALL)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the user's"]


def test_what_an_interrupted_drawing_left_is_drawn_anew(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthetic, "draw_lesion", lambda *_: signal.default_int_handler(2, None))
        make_synthetic(tmp_path / "s", COUNTS, SMALL)
    assert not (tmp_path / "s").exists()
    assert digests(make_synthetic(tmp_path / "s", COUNTS, SMALL)) == digests(folder)


def test_command_line(tmp_path, capsys):
    start_logging()
    call = ["--out", str(tmp_path / "s"), "--train", "2", "--validation", "1", "--test", "1", "--size", "96", "72"]
    for line in ("drew 2 train, 1 validation, 1 test", "already there"):
        main(call)
        assert line in capsys.readouterr().out
    for more in (["--train", "-1"], ["--size", "10", "288"], ["--out", str(tmp_path / "s/synthetic.json/x")]):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda more=more: main([*call, *more]))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "error: " in error and "Traceback" not in error
