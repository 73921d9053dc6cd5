"""Trained networks in use: photographs of one's own, and weights that are passed on."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.metrics import jaccard_score, roc_auc_score

import cls_main
import predict
import seg_main
from reproduce import KEPT
from utils import UserError
from utils.data.images import read_mask
from utils.data.isic import CLASSES, read_split
from utils.data.synthetic import make_synthetic
from utils.evaluation.runs import read_run
from utils.inference import release
from utils.inference.trained import RELEASED, has_weights, load_network, write_released

QUICK = ["--size", "32", "32", "--epochs", "1", "--batch-size", "4", "--lr", "1e-3", "-p", "0"]
TEST = "ISIC-2017_Test_v2_Data"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Data, and a finished run of each task with the small files of its results beside it."""
    home = tmp_path_factory.mktemp("home")
    data = make_synthetic(home / "data", {"train": 12, "validation": 9, "test": 4}, (80, 64), seed=3)
    folders = ["--data", str(data), "--output", str(home / "model"), "--cache", str(home / "cache")]
    seg_main.main(["--experiment", "seg-b1", *QUICK, *folders])
    cls_main.main(["--experiment", "cls-b2", *QUICK, *folders])
    for row in ("seg-b1", "cls-b2"):
        results = home / "results" / row / "seed0"
        results.mkdir(parents=True)
        for name in ("config.json", *KEPT):
            if (path := home / "model" / row / "run0" / name).is_file():
                shutil.copy(path, results)
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
    names = [photographs[0].stem, *(f"Rücken {number}" for number in range(3))]
    assert {path.name for path in out.iterdir()} == {f"{name}_segmentation.png" for name in names}
    with zipfile.ZipFile(home / "model/seg-b1/run0/test_masks.zip") as archive:
        for name, path in zip(names, photographs, strict=True):
            assert (out / f"{name}_segmentation.png").read_bytes() == archive.read(f"{path.stem}_segmentation.png")


def test_probabilities_are_those_of_the_run(home, tmp_path):
    out = on(home, tmp_path, "model/cls-b2/run0", home / "data" / TEST)
    got, kept = pd.read_csv(out / "predictions.csv"), pd.read_csv(home / "model/cls-b2/run0/test_predictions.csv")
    assert list(got["image_id"]) == list(kept["image_id"])
    assert np.allclose(got[list(CLASSES)], kept[list(CLASSES)], atol=1e-5)


@pytest.mark.parametrize("row", ["seg-b1", "cls-b2"])
def test_weights_that_are_passed_on_score_as_their_card_says(row, home, tmp_path):
    run, results = home / "model" / row / "run0", home / "results" / row / "seed0"
    assert not has_weights(results)
    with pytest.raises(UserError, match=r"seed0: no weights \(best\.pth or weights\.safetensors\)"):
        on(home, tmp_path, f"results/{row}/seed0", home / "data" / TEST)
    release.main([str(run), str(results), "--data", str(home / "data"), "--cache", str(home / "cache")])
    exact = torch.load(run / "best.pth", weights_only=True)["model"]
    state = load_network(read_run(results), torch.device("cpu")).state_dict()
    assert state.keys() == exact.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, exact[name].half().float() if tensor.ndim > 1 else exact[name])
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
    folders = [str(home / "model/seg-b1/run0"), str(home / "results/cls-b2/seed0")]
    with pytest.raises(UserError, match=r"seed0 does not hold the results of .*run0"):
        release.main(folders)


def test_a_weight_too_large_for_half_precision_is_named(tmp_path):
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(UserError, match="weight: not finite in half precision"):
        write_released(layer, tmp_path / RELEASED)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "damaged, or not the weights of this run"),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged, or not the weights of this run"),
        (lambda path: path.write_bytes(b""), "damaged, or not the weights of this run"),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "Missing key"),
        (lambda path: safetensors.torch.save_file({"a": torch.tensor([torch.nan])}, path), "a is not finite"),
    ],
    ids=["cut short", "a header of exabytes", "empty", "another network's", "NaN"],
)
def test_damaged_weights_are_refused(damage, reason, home, tmp_path):
    shutil.copytree(home / "results/seg-b1/seed0", tmp_path / "seed0")
    write_released(
        load_network(read_run(home / "model/seg-b1/run0"), torch.device("cpu")), tmp_path / "seed0" / RELEASED
    )
    damage(tmp_path / "seed0" / RELEASED)
    with pytest.raises(UserError, match=reason) as error:
        predict.main([str(tmp_path / "seed0"), str(home / "data" / TEST), "--output", str(tmp_path / "out")])
    assert str(error.value).startswith(str(tmp_path / "seed0" / RELEASED)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("a run that names no network or views of this program", "one line that says so, exit code 2")
@pytest.mark.parametrize(
    ("row", "file", "changed"),
    [
        ("seg-b1", "config.json", {"net": "mobilenet"}),
        ("seg-b1", "config.json", {"net": "res_unet", "attention": "spatial"}),
        ("seg-b1", "config.json", {"size": [8, 8]}),
        ("cls-b2", "config.json", {"net": "segmenter"}),
        ("cls-b2", "config.json", {"attention": "all"}),
        ("cls-b2", "config.json", {"batch_size": ...}),
        ("cls-b2", "config.json", {"size": ...}),
        ("cls-b2", "config.json", {"train_views": "all"}),
        ("cls-b2", "metrics.json", {"views": "all"}),
        ("cls-b2", "metrics.json", {"flips": ...}),
    ],
)
def test_a_run_of_another_program_does_not_predict(home, tmp_path, row, file, changed):
    folder = shutil.copytree(home / "results" / row / "seed0", tmp_path / "seed0")
    content = json.loads((folder / file).read_text())
    part = content["settings"] if file == "config.json" else content
    for name, value in changed.items():
        part.pop(name) if value is ... else part.update({name: value})
    (folder / file).write_text(json.dumps(content))
    (folder / RELEASED).touch()
    with pytest.raises(
        UserError, match=r"seed0: config.json or metrics.json:? damaged, or of another version \(.+\); copy"
    ):
        load_network(read_run(folder), torch.device("cpu"))


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
    predict.main([str(run), str(photograph), "--output", str(out)])
    with pytest.raises(UserError, match=r"_segmentation\.png is there already: move it away, or choose another --out"):
        predict.main([str(run), str(photograph), "--output", str(out)])
