"""Which runs make one row of a table, and what its note says."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_runs import (
    IDS,
    SCORED,
    TRAIN,
    VALIDATION,
    classification_run,
    labels_of,
    own_row,
    segmentation_run,
)
from utils import UserError
from utils.config import DEFAULTS, EXPERIMENTS, Experiment
from utils.data.isic import LEFT_OUT, Sample, read_labels, read_split
from utils.evaluation.classification import official_truth
from utils.evaluation.rows import Row, deviations, leading, result_rows, row_names
from utils.evaluation.runs import RunResult, find_runs
from utils.model.run import digest

WITHOUT_EXTRA, COPIES = "without the 1320 extra training images", "copies of scored images in training"

EXTRA = {"extra_images": "30 images, sha256 0123", "extra": ["mine"], "extra_share": 0.25}


def note(row: Experiment, **changed) -> list[str]:
    """`deviations` of a run with these settings; a name whose value is ... is not there."""
    images = {"train_images": TRAIN[row.task], "validation_images": VALIDATION[row.task]}
    settings = {**asdict(row), "seed": 7, "amp": "off", "weights": None, **images, **changed}
    metrics = {name: settings.pop(name) for name in ("views", "flips")}
    settings = json.loads(json.dumps({name: value for name, value in settings.items() if value is not ...}))
    return deviations(RunResult(Path("run7"), row.name, row.task, settings, metrics))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_with_its_rows_settings_deviates_in_nothing(name):
    assert note(EXPERIMENTS[name]) == []


@pytest.mark.parametrize(
    ("experiment", "changed", "words"),
    [
        ("seg-4", {"size": (128, 128)}, ["128×128 px"]),
        ("seg-4", {"epochs": 8}, ["8 of 150 epochs"]),
        ("seg-4", {"epochs": 300}, ["300 epochs"]),
        ("seg-4", {"pretrained": False}, ["not pretrained"]),
        ("seg-1", {"pretrained": True}, ["pretrained"]),
        ("seg-4", {"lr": 2.5e-4}, ["lr 2.5e-4"]),
        ("seg-4", {"weight_decay": 0}, ["weight decay 0"]),
        ("seg-5", {"attention": "none", "alpha": None}, ["attention none"]),
        ("cls-2-4", {"class_weights": (1, 2, 0.25)}, ["class weights 1 2 0.25"]),
        ("cls-1-2", {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4}, ["sgd", "lr 1e-2", "weight decay 1e-4"]),
        ("cls-1-2", {"net": "resnet18"}, ["network resnet18"]),
        ("cls-2-4", {"views": "1"}, ["scored by the whole frame"]),
        ("cls-2-4", {"views": "center9", "flips": True}, ["scored by views center9", "flips averaged"]),
        ("seg-4", {"train_images": "800 images, sha256 f5c4808d24d5e8e4"}, ["800 other train images (f5c480)"]),
        ("seg-4", {"train_images": "2000 images, sha256 6c9fe817e0e7cca8"}, [COPIES]),
        ("cls-2-4", {"train_images": "1969 images, sha256 5cc1395c5e7c5f0e"}, [WITHOUT_EXTRA]),
        ("cls-2-4", {"train_images": "2000 images, sha256 e207a8a3f1179450"}, [WITHOUT_EXTRA, COPIES]),
        ("cls-2-4", {"train_images": "3320 images, sha256 4019f43efcbd443f"}, [COPIES]),
        ("seg-4", {"validation_images": "4 images, sha256 0123456789abcdef"}, ["4 other validation images (012345)"]),
        ("seg-4", {"train_images": None}, ["train images not recorded"]),
        ("seg-4", {"weights": {"file": "resnet18-5c106cde.pth"}}, []),
        ("seg-4", {"weights": {"file": "mine.pth"}}, ["weights mine.pth"]),
        ("cls-2-4", {"pretrained": True, "weights": {"file": "mine.pth"}}, ["pretrained", "weights mine.pth"]),
        ("cls-b1", {"smoothing": 0.1}, ["smoothing 0.1"]),  # of a version that had it
        ("seg-4", EXTRA, ["with 30 images of mine, 25% of each batch"]),
        ("seg-4", {**EXTRA, "extra_epochs": None}, ["with 30 images of mine, 25% of each batch"]),  # likewise
        ("seg-4", {**EXTRA, "extra_epochs": 7}, ["with 30 images of mine, 25% of each batch of the first 7 epochs"]),
    ],
)
def test_deviations_in_words(experiment, changed, words):
    assert note(EXPERIMENTS[experiment], **changed) == words


def test_no_setting_of_a_row_can_differ_unseen():
    """Also one that a later version of the table adds."""
    other = {"attention": "channel", "alpha": "fixed", "class_weights": (9, 9, 9), "size": (64, 64), "net": "unet"}
    other |= {"pretrained": False, "loss": "ce", "optimizer": "sgd", "train_views": "frame", "flips": True}
    for field in asdict(DEFAULTS["segmentation"]).keys() - {"name", "task", "views"}:
        assert len(note(EXPERIMENTS["seg-5"], **{field: other.get(field, 77)})) == 1, field


def test_settings_that_an_older_run_did_not_keep_are_passed_over():
    assert note(EXPERIMENTS["seg-4"], lr=1e-3, optimizer=...) == ["lr 1e-3"]


def test_own_names_are_held_against_the_defaults():
    row = own_row("classification", "arl18-scratch", "arl18", False, class_weights=(1.0, 2.0, 3.0))
    assert note(row, epochs=5) == ["5 of 100 epochs", "class weights 1 2 3"]
    assert note(own_row("classification", "resnet18-pretrained", "resnet18", True)) == []


def test_the_challenges_images_are_known(isic2017):
    """The digests in `utils.evaluation.rows` are of the real files."""
    aug = read_labels(isic2017 / "ISIC-2017_Training_Aug_Part3_GroundTruth.csv")
    extra = [Sample(id_, None, None, label) for id_, label in aug.items()]
    without_copies = [sample for sample in extra if sample.id not in LEFT_OUT]
    samples = {
        (with_labels, copies): read_split(isic2017, "train", leave_out_copies=not copies, with_labels=with_labels)
        for with_labels in (False, True)
        for copies in (False, True)
    }
    assert digest(samples[False, False]) == TRAIN["segmentation"]
    assert digest(without_copies) == TRAIN["classification"]
    for with_labels, task in ((False, "segmentation"), (True, "classification")):
        assert digest(read_split(isic2017, "validation", with_labels=with_labels)) == VALIDATION[task]
    used = {case: digest(those) for case, those in samples.items()}
    assert used[True, False] == "1969 images, sha256 5cc1395c5e7c5f0e"
    assert used[False, True] == "2000 images, sha256 6c9fe817e0e7cca8"
    assert used[True, True] == "2000 images, sha256 e207a8a3f1179450"
    assert digest(extra) == "3320 images, sha256 4019f43efcbd443f"


def told(rows):
    return [(row.experiment, row.note, [run.folder.name for run in row.runs]) for row in rows]


def test_rows_are_those_of_the_table_then_own_names(tmp_path):
    for number, (name, changed) in enumerate(
        [("seg-4", {"seed": 2}), ("seg-2", {}), ("seg-4", {"seed": 1}), ("seg-4", {"seed": 1, "size": (128, 128)})]
    ):
        segmentation_run(tmp_path / f"run{number}", EXPERIMENTS[name], draw=number, **changed)
    own = own_row("segmentation", "unet-scratch", "unet", False, loss="ce")
    segmentation_run(tmp_path / "run8", own, splits=("validation",))
    runs = find_runs(tmp_path)
    rows = result_rows(runs, "segmentation", "validation")
    assert told(rows) == [
        ("seg-2", "", ["run1"]),
        ("seg-4", "", ["run2", "run0"]),
        ("seg-4", "128×128 px", ["run3"]),
        ("unet-scratch", "ce loss", ["run8"]),
    ]
    assert rows[2].settings["size"] == [128, 128]
    assert told(result_rows(runs[::-1], "segmentation", "validation")) == told(rows)
    on_test = told(result_rows(runs, "segmentation", "test"))
    assert [row[0] for row in on_test] == [row.experiment for row in rows[:-1]]  # not run8
    assert on_test[1] == ("seg-4", SCORED, ["run2", "run0"]) and on_test[2][1] == f"128×128 px, {SCORED}"
    assert result_rows(runs, "classification", "test") == []


def test_a_seed_counts_once_in_a_row(tmp_path):
    segmentation_run(tmp_path / "run0", seed=5)
    shutil.copytree(tmp_path / "run0", tmp_path / "run1")  # the same run, found in two places
    segmentation_run(tmp_path / "run2", seed=5, draw=1)
    segmentation_run(tmp_path / "run3", seed=6)
    segmentation_run(tmp_path / "run4", seed=5, draw=2)
    rows = result_rows(find_runs(tmp_path), "segmentation", "validation")
    assert told(rows) == [
        ("seg-4", "", ["run0", "run3"]),
        ("seg-4", "seed 5 again (1)", ["run2"]),
        ("seg-4", "seed 5 again (2)", ["run4"]),
    ]


def test_tables_of_a_row_come_in_one_order(tmp_path):
    for seed in (0, 1):
        classification_run(tmp_path / f"run{seed}", seed=seed)
    path = tmp_path / "run1/test_predictions.csv"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *lines[::-1]]))
    (row,) = result_rows(find_runs(tmp_path), "classification", "test")
    tables = row.per_image("test")
    assert [list(table["image_id"]) for table in tables] == [IDS["test"]] * 2
    assert [list(table["label"]) for table in tables] == [list(labels_of("test"))] * 2
    assert not tables[0]["melanoma"].equals(tables[1]["melanoma"])


def test_seeds_scored_on_other_images_are_refused(tmp_path):
    for seed in (0, 1):
        segmentation_run(tmp_path / f"run{seed}", seed=seed)
    path = tmp_path / "run1/per_image.csv"
    path.write_text(path.read_text().replace("ISIC_0000105", "ISIC_0000999"))
    (row,) = result_rows(find_runs(tmp_path), "segmentation", "test")
    with pytest.raises(UserError, match=r"run1 and .*run0 were scored on different images: leave one out"):
        row.per_image("test")
    assert len(row.per_image("validation")) == 2


def test_names_tell_rows_apart(tmp_path):
    segmentation_run(tmp_path / "a", EXPERIMENTS["seg-1"], splits=("validation",))
    segmentation_run(tmp_path / "b", EXPERIMENTS["seg-2"], splits=("validation",), epochs=8)
    for name, size in (("c", (336, 224)), ("d", (128, 128))):
        segmentation_run(tmp_path / name, EXPERIMENTS["seg-4"], splits=("validation",), size=size)
    rows = result_rows(find_runs(tmp_path), "segmentation", "validation")
    assert row_names(rows) == ["seg-1", "seg-2", "seg-4", "seg-4 #2"]


def test_seeds_with_other_labels_are_refused(tmp_path):
    for seed in (0, 1):
        classification_run(tmp_path / f"run{seed}", seed=seed)
    labels = dict(zip(IDS["test"], np.roll(labels_of("test"), 1).tolist(), strict=True))
    official_truth(labels).to_csv(tmp_path / "run1/test_truth_official.csv", index=False)
    (row,) = result_rows(find_runs(tmp_path), "classification", "test")
    with pytest.raises(UserError, match="were scored on different images"):
        row.probabilities("test")


def test_the_best_ensemble_and_the_row_of_each_network_with_the_most_runs_lead():
    """Of rows that come the best first: b and f are of a's network, d is of c's but no ensemble, e a worse one."""
    rows = []
    for name, net, more in (
        ("a", "unet", {}),
        ("b", "unet", {}),
        ("c", "res_unet", {"ensemble": {"c": [0, 1]}}),
        ("d", "res_unet", {}),
        ("e", "unet", {"ensemble": {"e": [0, 1]}}),
        ("f", "unet", {}),
    ):
        run = RunResult(Path(name), name, "segmentation", {"net": net, **more}, {})
        rows.append(Row(name, (run,) * (2 if name == "f" else 1)))
    assert [row.experiment for row in leading(rows)] == ["c", "d", "f"]
    assert [row.experiment for row in leading(rows[:-1])] == ["a", "c", "d"]
