"""Trained networks in use: photographs of one's own, and weights that are passed on."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score, roc_auc_score

import cls_main
import predict
import seg_main
from reproduce import KEPT
from tests.conftest import ROOT
from tests.scripts.conftest import QUICK, flags
from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, read_split
from utils.inference import release
from utils.inference.trained import RELEASED, has_weights

TEST = "ISIC-2017_Test_v2_Data"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory, data, undrawn) -> Path:
    """A finished run of each task, with the small files of its results beside it."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").symlink_to(data)
    for script, row in ((seg_main, "seg-b1"), (cls_main, "cls-b1")):
        run = script.main(["--experiment", row, *QUICK, *flags(home / "data", home)])
        results = home / "results" / row / "seed0"
        results.mkdir(parents=True)
        for name in ("config.json", *KEPT):
            if run.path(name).is_file():
                shutil.copy(run.path(name), results)
    return home


def on(home: Path, tmp_path: Path, run: str, *images: Path) -> Path:
    predict.main([str(home / run), *map(str, images), "--output", str(tmp_path / "out")])
    return tmp_path / "out"


def test_masks_are_those_of_the_run(home, tmp_path):
    """The same photographs under names of their own, one alone and others in a folder."""
    photographs = sorted((home / "data" / TEST).glob("*.jpg"))
    (tmp_path / "mine").mkdir()
    for number, path in enumerate(photographs[1:]):
        shutil.copy(path, tmp_path / "mine" / f"Rücken {number}.JPG")
    (tmp_path / "mine" / "notes.txt").touch()
    shutil.copy(tmp_path / "mine" / "Rücken 0.JPG", tmp_path / "mine" / "Rücken_superpixels.png")
    out = on(home, tmp_path, "model/seg-b1/run0", photographs[0], tmp_path / "mine")
    names = [photographs[0].stem, *(f"Rücken {number}" for number in range(len(photographs) - 1))]
    assert {path.name for path in out.iterdir()} == {f"{name}_segmentation.png" for name in names}
    with zipfile.ZipFile(home / "model/seg-b1/run0/test_masks.zip") as archive:
        for name, path in zip(names, photographs, strict=True):
            assert (out / f"{name}_segmentation.png").read_bytes() == archive.read(f"{path.stem}_segmentation.png")


def test_probabilities_are_those_of_the_run(home, tmp_path):
    """As a command, from another folder, to the folder that it takes by itself."""
    command = [sys.executable, str(ROOT / "predict.py"), str(home / "model/cls-b1/run0"), str(home / "data" / TEST)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    got = pd.read_csv(tmp_path / "predictions" / "predictions.csv")
    kept = pd.read_csv(home / "model/cls-b1/run0/test_predictions.csv")
    assert list(got["image_id"]) == list(kept["image_id"])
    assert np.allclose(got[list(CLASSES)], kept[list(CLASSES)], atol=1e-5)


@pytest.mark.parametrize("row", ["seg-b1", "cls-b1"])
def test_weights_that_are_passed_on_score_as_their_card_says(row, home, tmp_path):
    run, results = home / "model" / row / "run0", home / "results" / row / "seed0"
    assert not has_weights(results)
    with pytest.raises(UserError, match=r"seed0: no weights \(best\.pth or weights\.safetensors\)"):
        on(home, tmp_path, f"results/{row}/seed0", home / "data" / TEST)
    release.main([str(run), str(results), "--data", str(home / "data"), "--cache", str(home / "cache")])
    assert (results / RELEASED).stat().st_size < 0.2 * (run / "last.pth").stat().st_size

    out = on(home, tmp_path, f"results/{row}/seed0", home / "data" / "ISIC-2017_Validation_Data")
    samples = read_split(home / "data", "validation")
    if row == "seg-b1":
        name = "jaccard"
        masks = [(read_mask(sample.mask), read_mask(out / f"{sample.id}_segmentation.png")) for sample in samples]
        value = np.mean([jaccard_score(truth.ravel(), mask.ravel()) for truth, mask in masks])
    else:
        name, got = "mean AUC", pd.read_csv(out / "predictions.csv")
        aucs = [roc_auc_score([sample.label == n for sample in samples], got[CLASSES[n]]) for n in (0, 1)]
        value = np.mean(aucs)
    card = (results / "README.md").read_text()
    assert f"python predict.py results/{row}/seed0 photo.jpg" in card and "Not a medical device" in card
    assert "starts from | random weights" in card and "12 images" in card
    (line,) = (line for line in card.splitlines() if line.strip().startswith(f"{name} "))
    assert float(line.removeprefix(f"  {name}").split()[0]) == pytest.approx(value, abs=1e-4)


def test_results_of_another_run_get_no_weights(home):
    folders = [str(home / "model/seg-b1/run0"), str(home / "results/cls-b1/seed0")]
    with pytest.raises(UserError, match=r"seed0 does not hold the results of .*run0"):
        release.main(folders)


def test_mistakes_are_named_before_anything_is_written(home, tmp_path):
    run, out = home / "model/seg-b1/run0", tmp_path / "out"
    photograph = next((home / "data" / TEST).glob("*.jpg"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    shutil.copy(photograph, tmp_path / "other")
    (tmp_path / "cut.jpg").write_bytes(photograph.read_bytes()[:-300])
    (tmp_path / "page.jpg").write_text("<html>")
    for arguments, reason in (
        ((home, photograph), "no finished run"),
        ((run, tmp_path / "absent.jpg"), "absent.jpg: no such file"),
        ((run, tmp_path / "empty"), "empty: no photograph in this folder"),
        ((run, photograph, tmp_path / "other"), "would have one name in the output"),
        ((run, tmp_path / "page.jpg"), "page.jpg: truncated or not an image"),
        ((run, tmp_path / "cut.jpg"), "cut.jpg: truncated or not an image"),
    ):
        with pytest.raises(UserError, match=reason):
            predict.main([*map(str, arguments), "--output", str(out)])
        assert not out.exists() or not any(out.iterdir())
    out.mkdir(exist_ok=True)
    (out / f"{photograph.stem}_segmentation.png").touch()
    with pytest.raises(UserError, match=r"_segmentation\.png is there already: move it away, or choose another --out"):
        predict.main([str(run), str(photograph), "--output", str(out)])
