"""The embedded sample: the official layout, reproducible to the byte, harder than a threshold or a mean colour."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils import UserError
from utils.data import synthetic as sample_module
from utils.data.dermoscopy import SPLIT_STRIDE, draw_label, draw_lesion
from utils.data.isic import CLASSES
from utils.data.synthetic import FOLDERS, ISIC_SIZES, main, make_synthetic

COUNTS = {"train": 5, "validation": 3, "test": 3}
SMALL = (96, 72)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_of(table: Path) -> dict[str, int]:
    with table.open(newline="", encoding="utf-8") as lines:
        rows = [(row["image_id"], row["melanoma"], row["seborrheic_keratosis"]) for row in csv.DictReader(lines)]
    assert all({melanoma, keratosis} <= {"0.0", "1.0"} for _, melanoma, keratosis in rows)
    return {name: 0 if melanoma == "1.0" else 1 if keratosis == "1.0" else 2 for name, melanoma, keratosis in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "new" / "sample", COUNTS, SMALL)


@pytest.fixture(scope="module")
def draws() -> list[tuple[np.ndarray, np.ndarray, int]]:
    """144 lesions, the first 48 of three seeds: 36 melanomas, 36 keratoses, 72 nevi."""
    return [draw_lesion(seed, index, (256, 192)) for seed in (11, 12, 13) for index in range(48)]


# ----------------------------------------------------------------------------------------------- folder


def test_layout_and_names_are_the_official_ones(folder):
    expected = {"sample.json"}
    for number, (split, (images, truth)) in enumerate(FOLDERS.items()):
        names = [f"ISIC_{9_000_000 + number * SPLIT_STRIDE + i}" for i in range(COUNTS[split])]
        expected |= {f"{images}/{name}.jpg" for name in names}
        expected |= {f"{truth}_Part1_GroundTruth/{name}_segmentation.png" for name in names}
        expected.add(f"{truth}_Part3_GroundTruth.csv")
        assert list(labels_of(folder / f"{truth}_Part3_GroundTruth.csv")) == names
    assert set(digests(folder)) == expected
    assert (folder / "ISIC-2017_Test_v2_Data/ISIC_9200000.jpg").is_file()
    assert json.loads((folder / "sample.json").read_text()) == {
        "format": sample_module.FORMAT, "counts": COUNTS, "size": [96, 72], "seed": 0,
    }  # fmt: skip


def test_files_hold_what_draw_lesion_returns(folder):
    for number, (images, truth) in enumerate(FOLDERS.values()):
        labels = labels_of(folder / f"{truth}_Part3_GroundTruth.csv")
        for i, (name, label) in enumerate(labels.items()):
            image, mask, drawn = draw_lesion(0, number * SPLIT_STRIDE + i, SMALL)
            stored = cv2.imread(str(folder / images / f"{name}.jpg"))[..., ::-1]
            assert stored.shape == image.shape == (72, 96, 3)
            assert np.abs(stored.astype(int) - image).mean() < 8  # JPEG's loss; another image differs by far more
            stored = cv2.imread(str(folder / f"{truth}_Part1_GroundTruth" / f"{name}_segmentation.png"), -1)
            assert np.array_equal(stored, mask)
            assert drawn == label


def test_no_image_is_in_the_set_twice(folder):
    content = [digest for name, digest in digests(folder).items() if name.endswith(".jpg")]
    assert len(set(content)) == sum(COUNTS.values())


def test_same_seed_same_bytes_and_another_seed_other_images(folder, tmp_path):
    again = digests(make_synthetic(tmp_path / "again", COUNTS, SMALL))
    assert again == digests(folder)
    other = digests(make_synthetic(tmp_path / "other", COUNTS, SMALL, seed=1))
    assert not {other[name] for name in other if name.endswith(".jpg")} & set(again.values())


def test_more_training_images_leave_the_others_as_they_are(folder, tmp_path):
    longer = digests(make_synthetic(tmp_path / "longer", {**COUNTS, "train": 8}, SMALL))
    for name, digest in digests(folder).items():
        if name.endswith((".jpg", ".png")):
            assert longer[name] == digest


def test_every_split_holds_every_class_and_large_ones_the_real_balance():
    for seed in range(5):
        for start in (0, SPLIT_STRIDE, 2 * SPLIT_STRIDE):
            labels = [draw_label(seed, start + i) for i in range(1648)]
            assert set(labels[:3]) == {0, 1, 2}
            assert np.bincount(labels[:48]).tolist() == [12, 12, 24]
            assert np.bincount(labels[48:]).tolist() == [300, 200, 1100]
    orders = {tuple(draw_label(seed, i) for i in range(48)) for seed in range(5)}
    assert len(orders) == 5


def test_a_split_of_no_images_is_left_out(tmp_path):
    out = make_synthetic(tmp_path / "few", {"train": 2, "test": 0}, SMALL)
    assert sorted(path.name for path in out.iterdir()) == [
        "ISIC-2017_Training_Data",
        "ISIC-2017_Training_Part1_GroundTruth",
        "ISIC-2017_Training_Part3_GroundTruth.csv",
        "sample.json",
    ]


def test_size_mix_gives_each_image_a_size_of_the_real_table(tmp_path, monkeypatch):
    # The table's smallest sizes only: the largest take a second an image.
    monkeypatch.setattr(sample_module, "ISIC_SIZES", {size: n for size, n in ISIC_SIZES.items() if size[0] < 1000})
    out = make_synthetic(tmp_path / "mix", {"train": 8}, "isic")
    sizes = set()
    for path in (out / "ISIC-2017_Training_Data").iterdir():
        height, width = cv2.imread(str(path)).shape[:2]
        mask = cv2.imread(str(out / "ISIC-2017_Training_Part1_GroundTruth" / f"{path.stem}_segmentation.png"), -1)
        assert mask.shape == (height, width)
        sizes.add((width, height))
    assert len(sizes) > 1
    assert sizes <= {(767, 576), (919, 802), (824, 719)}


def test_built_in_sizes_are_the_real_ones(isic2017):
    with (isic2017 / "original_sizes.csv").open(newline="") as lines:
        real = [(int(float(row["width"])), int(float(row["height"]))) for row in csv.DictReader(lines)]
    for size, count in ISIC_SIZES.items():
        assert count == (sum(width > 6500 for width, _ in real) if size[0] > 6500 else real.count(size)), size


# --------------------------------------------------------------------------- not overwriting, going on


def test_complete_folder_is_left_untouched(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_synthetic(folder, COUNTS, SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"size": (72, 96)}, {"size": "isic"}, {"counts": {**COUNTS, "test": 4}}], ids=str
)
def test_other_parameters_are_refused(folder, change):
    before = digests(folder)
    with pytest.raises(UserError, match="other parameters"):
        make_synthetic(folder, **{"counts": COUNTS, "size": SMALL, **change})
    assert digests(folder) == before


def test_folder_with_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "ISIC-2017_Training_Data").mkdir()
    (tmp_path / "ISIC-2017_Training_Data/ISIC_0000000.jpg").write_bytes(b"a user's photograph")
    before = digests(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        make_synthetic(tmp_path, COUNTS, SMALL)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"format": 0}'])
def test_unreadable_or_older_record_is_refused(tmp_path, content):
    (tmp_path / "sample.json").write_text(content)
    with pytest.raises(UserError, match=r"sample\.json"):
        make_synthetic(tmp_path, COUNTS, SMALL)
    assert (tmp_path / "sample.json").read_text() == content


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "sample").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        make_synthetic(tmp_path / "sample", COUNTS, SMALL)
    with pytest.raises(UserError, match="cannot be made"):
        make_synthetic(tmp_path / "sample" / "below", COUNTS, SMALL)


def test_interrupted_run_is_no_complete_one_and_is_completed(folder, tmp_path, monkeypatch):
    write, written = sample_module._write, []

    def write_until_interrupted(path, content):
        if len(written) == 9:
            path.write_bytes(content[:40])  # the file that was being written
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(sample_module, "_write", write_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "sample", COUNTS, SMALL)
    assert not (tmp_path / "sample" / "sample.json").exists()
    monkeypatch.setattr(sample_module, "_write", write)
    with pytest.raises(UserError, match="other parameters"):
        make_synthetic(tmp_path / "sample", COUNTS, SMALL, seed=1)
    assert digests(make_synthetic(tmp_path / "sample", COUNTS, SMALL)) == digests(folder)


@pytest.mark.parametrize(
    "parameters",
    [
        {"counts": {"train": -1}}, {"counts": {"train": 0}}, {"counts": {"trian": 3}},
        {"counts": {"train": SPLIT_STRIDE + 1}}, {"size": (10, 288)}, {"size": (384, 99_999)}, {"size": "huge"},
        {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_range_are_named_and_nothing_is_made(tmp_path, parameters):
    with pytest.raises(UserError) as error:
        make_synthetic(tmp_path / "sample", **parameters)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sample").exists()


def test_command_line(tmp_path, capsys):
    call = ["--out", str(tmp_path / "s"), "--train", "2", "--validation", "1", "--test", "1", "--size", "96", "72"]
    assert main(call) == 0
    assert "drew 2 train" in capsys.readouterr().out
    assert main(call) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*call, "--seed", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main([*call, "--size-mix", "isic"])
    assert stop.value.code == 2


def test_command_as_users_type_it(tmp_path):
    call = [sys.executable, "-m", "utils.data.synthetic", "--out", str(tmp_path), "--train", "-3"]
    done = subprocess.run(call, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: train count -3")
    assert "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("size", [(64, 64), (101, 67), (67, 101), (1300, 900)])
def test_any_size(size):
    for index in range(3):
        image, mask, _ = draw_lesion(2, index, size)
        assert image.shape == (size[1], size[0], 3)
        assert mask.shape == (size[1], size[0])
        assert image.dtype == mask.dtype == np.uint8
        assert cv2.connectedComponents(mask)[0] == 2
        again, same_mask, _ = draw_lesion(2, index, size)
        assert np.array_equal(image, again)
        assert np.array_equal(mask, same_mask)


def test_masks_are_one_region_of_sensible_area_and_some_touch_the_border(draws):
    touching = 0
    for _, mask, _ in draws:
        assert set(np.unique(mask)) == {0, 255}
        assert cv2.connectedComponents(mask)[0] == 2  # the background and one lesion
        assert 0.02 <= (mask > 0).mean() <= 0.75
        touching += mask[[0, -1]].any() or mask[:, [0, -1]].any()
    assert 0.05 <= touching / len(draws) <= 0.35


def test_mask_edge_is_where_the_image_changes(draws):
    """A ring just inside the outline differs from one just outside, more than two rings outside differ."""
    across, outside = [], []
    for image, mask, _ in draws:
        inner = mask - cv2.erode(mask, np.ones((9, 9)))
        near = cv2.dilate(mask, np.ones((11, 11))) - cv2.dilate(mask, np.ones((3, 3)))
        far = cv2.dilate(mask, np.ones((27, 27))) - cv2.dilate(mask, np.ones((19, 19)))
        inner, near, far = (np.median(image[ring > 0], axis=0) for ring in (inner, near, far))
        across.append(np.abs(inner - near).mean())
        outside.append(np.abs(near - far).mean())
    assert np.median(across) > 4 * np.median(outside)
    assert np.mean(np.array(across) > 6) > 0.9  # visible nearly always, if faint


def test_threshold_does_not_find_the_lesions(draws):
    jaccards = []
    for image, mask, _ in draws:
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 2)
        found = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1] > 0
        jaccards.append((found & (mask > 0)).sum() / (found | (mask > 0)).sum())
    # On the real photographs it is 0.47, with as wide a spread.
    assert 0.3 < np.mean(jaccards) < 0.6
    assert np.mean(np.array(jaccards) > 0.85) > 0.05  # and some are plain


def test_mean_colour_does_not_tell_the_classes_but_what_doctors_look_at_does(draws):
    truth = np.array([label for *_, label in draws])
    assert np.bincount(truth).tolist() == [36, 36, 72]
    signs = {"mean colour": [], "colours": [], "milia": [], "asymmetry": []}
    for image, mask, _ in draws:
        inside = mask > 0
        signs["mean colour"].append(image.mean(axis=(0, 1)))
        smooth = cv2.GaussianBlur(image, (0, 0), 3).astype(float)
        core = cv2.erode(mask, np.ones((13, 13))) > 0
        signs["colours"].append(smooth[core if core.any() else inside].std(axis=0).mean())
        bright = cv2.morphologyEx(image.min(axis=2), cv2.MORPH_TOPHAT, np.ones((9, 9)))
        signs["milia"].append((bright[core if core.any() else inside] > 30).mean())
        hull = cv2.convexHull(np.argwhere(inside)[:, None].astype(np.int32))
        signs["asymmetry"].append(1 - inside.sum() / cv2.contourArea(hull))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    guess = cross_val_predict(model, np.array(signs["mean colour"]), truth, cv=12)
    assert balanced_accuracy_score(truth, guess) < 0.5  # chance: 0.33
    assert roc_auc_score(truth == CLASSES.index("melanoma"), signs["colours"]) > 0.7
    assert roc_auc_score(truth == CLASSES.index("melanoma"), signs["asymmetry"]) > 0.7
    assert roc_auc_score(truth == CLASSES.index("seborrheic_keratosis"), signs["milia"]) > 0.7
    for sign in ("colours", "asymmetry", "milia"):  # but no single one is the answer
        assert max(roc_auc_score(truth == k, signs[sign]) for k in range(3)) < 0.97
