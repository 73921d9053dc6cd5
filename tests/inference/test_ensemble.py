"""Runs put together: the mean of probabilities, the majority of masks; in the form of a run's results."""

import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score, roc_auc_score

from tests.evaluation.test_runs import classification_run, edit, labels_of, segmentation_run
from utils import UserError
from utils.data.isic import CLASSES, read_split
from utils.data.synthetic import make_synthetic
from utils.evaluation.rows import result_rows
from utils.evaluation.runs import find_runs
from utils.evaluation.segmentation import confusion_counts, per_image_table, summarize
from utils.evaluation.tables import classification_table, segmentation_table
from utils.inference import ensemble
from utils.inference.segmentation import add_file, png

MIXED = "seg-4+seg-5-ensemble/seed0"


def test_probabilities_are_averaged_and_scored(tmp_path):
    for seed in (0, 1, 2):
        classification_run(tmp_path / f"cls-2-4/seed{seed}", seed=seed, truth=("validation",))
    ensemble.main(["cls-2-4", "--results", str(tmp_path)])
    folder = tmp_path / "cls-2-4-ensemble/seed0"
    for split in ("validation", "test"):
        each = [pd.read_csv(tmp_path / f"cls-2-4/seed{seed}/{split}_predictions.csv") for seed in (0, 1, 2)]
        got = pd.read_csv(folder / f"{split}_predictions.csv")
        assert list(got["image_id"]) == list(each[0]["image_id"])
        assert np.allclose(got[list(CLASSES)], np.mean([table[list(CLASSES)] for table in each], axis=0), atol=1e-6)
        if split == "validation":
            auc = roc_auc_score(labels_of(split) == 0, got["melanoma"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"]["melanoma"]["auc"] == pytest.approx(auc) and metrics["test"] is None
    assert metrics["views"] == "9"
    (row,) = (row for row in result_rows(find_runs(tmp_path), "classification", "validation") if len(row.runs) == 1)
    assert (row.name, row.note) == ("cls-2-4-ensemble", "ensemble of cls-2-4 0 1 2")
    assert row.probabilities("validation")[0].shape == (1, 25, 3)


def test_classifiers_of_other_classes(tmp_path):
    own = {"melanoma": "wart", "seborrheic_keratosis": "mole", "nevus": "scar"}
    for seed in (0, 1):
        classification_run(tmp_path / f"cls-2-4/seed{seed}", seed=seed)
        folder = classification_run(tmp_path / f"mine-arl14/seed{seed}", seed=seed, classes=[*own.values()])
        for path in (*folder.glob("*_predictions.csv"), *folder.glob("*_truth_official.csv")):
            pd.read_csv(path).rename(columns=own).to_csv(path, index=False)
    for row in ("mine-arl14", "cls-2-4"):
        ensemble.main([row, "--results", str(tmp_path)])
    run, same = (find_runs(tmp_path / f"{row}-ensemble")[0] for row in ("mine-arl14", "cls-2-4"))
    assert run.predictions("validation").equals(same.predictions("validation").rename(columns=own))
    assert run.metrics["test"]["wart"] == same.metrics["test"]["melanoma"] and "scar" in run.metrics["test"]
    with pytest.raises(UserError, match=r"mine-arl14/seed0 is of wart, mole, scar, .*cls-2-4/seed0 of melanoma, seb"):
        ensemble.main(["mine-arl14", "cls-2-4", "--results", str(tmp_path)])


@pytest.fixture
def masks(tmp_path):
    """Three runs that each get other images wrong, and the data folder."""
    data = make_synthetic(tmp_path / "data", {"train": 3, "validation": 4, "test": 3}, (72, 64), seed=2)
    for seed in (0, 1, 2):
        folder = segmentation_run(tmp_path / f"results/seg-4/seed{seed}", seed=seed)
        counts, rng = {}, np.random.default_rng(seed)
        for split in ("validation", "test"):
            with zipfile.ZipFile(folder / f"{split}_masks.zip", "w") as archive:
                for place, sample in enumerate(read_split(data, split)):
                    truth = np.array(Image.open(sample.mask)) > 128 if sample.mask else rng.random((64, 72)) < 0.5
                    mask = ~truth if place == seed else truth ^ (rng.random(truth.shape) < 0.1)
                    add_file(archive, f"{sample.id}_segmentation.png", png(255 * mask))
                    if split == "validation":
                        counts[sample.id] = confusion_counts(mask, truth)
        edit(folder / "metrics.json", lambda content, c=counts: content.update(validation=summarize(c), test=None))
        per_image_table(counts).assign(split="validation").to_csv(folder / "per_image.csv", index=False)
    return tmp_path / "results", data


def test_masks_are_voted_on_and_scored(masks):
    results, data = masks
    ensemble.main(["seg-4", "--results", str(results), "--data", str(data)])
    folder = results / "seg-4-ensemble/seed0"
    scores = []
    for sample in read_split(data, "validation"):
        each = [read(results / f"seg-4/seed{seed}/validation_masks.zip", sample.id) for seed in (0, 1, 2)]
        voted = read(folder / "validation_masks.zip", sample.id)
        assert np.array_equal(voted, np.median(each, axis=0))
        truth = np.array(Image.open(sample.mask)) > 128
        scores.append(jaccard_score(truth.ravel(), voted.ravel() > 128))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"]["official"]["jaccard"] == pytest.approx(np.mean(scores))
    assert len(find_runs(folder)[0].mask_ids("test")) == 3 and len(find_runs(folder)[0].per_image("validation")) == 4
    table = segmentation_table(find_runs(results), "validation").set_index("experiment")["jaccard"]
    assert table["seg-4-ensemble"].mean == pytest.approx(np.mean(scores))
    assert table["seg-4-ensemble"].mean > table["seg-4"].mean
    names = [row.experiment for row in result_rows(find_runs(results), "segmentation", "validation")]
    assert names.index("seg-4-ensemble") == names.index("seg-4") + 1


def read(path, image_id) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(f"{image_id}_segmentation.png") as file:
        return np.array(Image.open(file))


def test_a_draw_is_no_lesion(masks):
    results, data = masks
    shutil.rmtree(results / "seg-4/seed2")
    ensemble.main(["seg-4", "--results", str(results), "--data", str(data)])
    sample = read_split(data, "validation")[0]
    each = [read(results / f"seg-4/seed{seed}/validation_masks.zip", sample.id) for seed in (0, 1)]
    assert np.array_equal(read(results / "seg-4-ensemble/seed0/validation_masks.zip", sample.id), np.minimum(*each))


def test_probabilities_go_before_masks(masks):
    """Three of one row, at 9×8, and one of another at 72×64: enlarged each, with equal weight."""
    results, data = masks
    shutil.copytree(results / "seg-4/seed0", results / "seg-5/seed0")
    edit(results / "seg-5/seed0/config.json", lambda config: config["settings"].update(name="seg-5", net="arl_unet"))
    runs = [run for row in ("seg-4", "seg-5") for run in sorted(find_runs(results / row), key=lambda run: run.seed)]
    samples = {split: read_split(data, split) for split in ("validation", "test")}
    maps = np.random.default_rng(4).integers(0, 256, (4, 64, 72), dtype=np.uint8)
    maps[:3] = np.repeat(np.repeat(maps[:3, ::8, ::8], 8, axis=1), 8, axis=2)  # of one grey to an 8×8 square
    for run, grey in zip(runs, maps, strict=True):
        for split in samples:
            with zipfile.ZipFile(run.folder / f"{split}_probabilities.zip", "w") as archive:
                for sample in samples[split]:
                    add_file(archive, f"{sample.id}.png", png(grey[4::8, 4::8] if run.experiment == "seg-4" else grey))
    ensemble.main(["seg-4", "seg-5", "--results", str(results), "--data", str(data)])
    middles = slice(3, None, 8), slice(3, None, 8)  # near those of the squares, where enlarging changes little
    mean, voted = np.mean(maps, axis=0)[middles], read(results / MIXED / "test_masks.zip", samples["test"][0].id)
    clear = np.abs(mean - 127.5) > 30
    assert voted.shape == (64, 72) and clear.mean() > 0.3
    assert np.array_equal(voted[middles][clear] > 128, mean[clear] > 127.5)


def test_rows_of_several_networks(masks):
    results, _ = masks
    for name, net, seeds, size in (("cls-2-4", "arl14", (0, 1), [224, 224]), ("cls-b1", "mobilenet", (3,), [192, 192])):
        for seed in seeds:
            folder = classification_run(results / f"{name}/seed{seed}", seed=seed, truth=("validation",))
            changes = {"name": name, "net": net, "size": size, "pretrained": name == "cls-b1"}
            changes |= {"dropout": True, "extra": ["ham10000"]} if name == "cls-b1" else {}
            edit(folder / "config.json", lambda config, changes=changes: config["settings"].update(changes))
    ensemble.main(["cls-2-4", "cls-b1", "--results", str(results)])
    (run,) = find_runs(results / "cls-2-4+cls-b1-ensemble")
    assert "dropout" not in run.settings and run.settings["extra"] == ["ham10000"] and run.settings["epochs"] == 100
    members = [run.predictions("test") for row in ("cls-2-4", "cls-b1") for run in find_runs(results / row)]
    mean = np.mean([table[list(CLASSES)] for table in members], axis=0)
    assert np.allclose(run.predictions("test")[list(CLASSES)], mean, atol=1e-6)
    table = classification_table(find_runs(results), "validation").set_index("experiment")
    assert table.loc["cls-2-4+cls-b1-ensemble", ["network", "size"]].tolist() == ["arl14 + mobilenet", "–"]
    assert table.loc["cls-2-4+cls-b1-ensemble", "note"].startswith("ensemble of cls-2-4 0 1 and cls-b1 3")
    with pytest.raises(UserError, match=r"seg-4/seed0 is of segmentation, .*cls-b1/seed3 of classification"):
        ensemble.main(["seg-4", "cls-b1", "--results", str(results)])


def test_what_does_not_belong_together_is_refused(masks, tmp_path):
    results, _ = masks
    with pytest.raises(UserError, match=r"seg-2: 0 finished runs; an ensemble takes two or more"):
        ensemble.find_members([results / "seg-2"])
    with pytest.raises(UserError, match=r"seg-2: 0 finished runs"):
        ensemble.find_members([results / "seg-4", results / "seg-2"])
    with pytest.raises(UserError, match=r"none: true masks of 0 of the validation images; choose the folder by --data"):
        ensemble.main(["seg-4", "--results", str(results), "--data", str(tmp_path / "none")])
    assert not (results / "seg-4-ensemble/seed0/metrics.json").exists()
    edit(results / "seg-4/seed1/metrics.json", lambda content: content.update(flips=True))
    edit(results / "seg-4/seed1/config.json", lambda content: content["settings"].update(lr=0.5))
    with pytest.raises(UserError, match=r"seed1 and .*seed0 differ in flips, lr: leave one out"):
        ensemble.find_members([results / "seg-4"])
    edit(results / "seg-4/seed1/metrics.json", lambda content: content.update(flips=False))
    edit(results / "seg-4/seed1/config.json", lambda content: content["settings"].update(lr=1e-4, seed=0))
    with pytest.raises(UserError, match=r"seed0 and .*seed1 are both of seed 0: leave one out"):
        ensemble.find_members([results / "seg-4"])


def test_a_split_that_nobody_predicted_is_left_out(masks, tmp_path):
    results, data = masks
    for seed in (0, 1, 2):
        classification_run(results / f"cls-2-4/seed{seed}", seed=seed, truth=("validation",))
        (results / f"cls-2-4/seed{seed}/test_predictions.csv").unlink()
        (results / f"seg-4/seed{seed}/test_masks.zip").unlink()
    for row in ("cls-2-4", "seg-4"):
        ensemble.main([row, "--results", str(results), "--data", str(data)])
        assert not list((results / f"{row}-ensemble/seed0").glob("test_*"))
        assert json.loads((results / f"{row}-ensemble/seed0/metrics.json").read_text())["test"] is None
    # of some of the seeds only, or no probabilities: refused, and what was there is as it was
    before = {path: path.read_bytes() for path in (results / "cls-2-4-ensemble/seed0").iterdir()}
    classification_run(results / "cls-2-4/seed1", seed=1, truth=("validation",))
    with pytest.raises(UserError, match=r"seed0/test_predictions.csv: no such file"):
        ensemble.main(["cls-2-4", "--results", str(results)])
    assert before == {path: path.read_bytes() for path in (results / "cls-2-4-ensemble/seed0").iterdir()}
    assert [path.name for path in (results / "cls-2-4-ensemble").iterdir()] == ["seed0"] and len(before) == 5
