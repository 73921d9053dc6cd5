"""Run folders as the scripts write them: found, read, and refused when damaged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils import UserError
from utils.config import DEFAULTS, EXPERIMENTS, Experiment, default_attention
from utils.data.isic import CLASSES, lesions
from utils.evaluation.classification import classification_scores, official_truth, predictions_table, summarize
from utils.evaluation.runs import find_runs, read_run
from utils.evaluation.segmentation import per_image_table
from utils.evaluation.segmentation import summarize as summarize_counts
from utils.model.run import Run

TRAIN = {
    "segmentation": "1969 images, sha256 b2eebcf001ee3ca1",
    "classification": "3289 images, sha256 04d780f6fd6f49b4",
}
VALIDATION = {
    "segmentation": "150 images, sha256 bd160fd18a14af16",
    "classification": "150 images, sha256 cf672a04da0db6dc",
}
TEST = [*range(100, 136), 12152, 12216, 15979, 16001]  # among them two known copies
IDS = {"validation": [f"ISIC_{n:07}" for n in range(25)], "test": [f"ISIC_{n:07}" for n in TEST]}
SCORED = "scored on 40 images"  # not on the challenge's 600


def start(folder, row, seed=0, **changed) -> Run:
    settings = {**asdict(row), "seed": seed, "amp": "auto", "weights": None}
    for name in ("views", "flips"):
        del settings[name]
    settings |= {"train_images": TRAIN[row.task], "validation_images": VALIDATION[row.task]}
    facts = {
        "test_images": "600 images, sha256 6e490b64a6b0f9c5",
        "device": "cpu (x86_64)",
        "cpu_threads": 1 + seed % 2,
    }
    run = Run(folder, settings | changed, facts, resume=False)
    run.write_history([{"epoch": n, "lr": 1e-4 / n, "train_loss": 1 / n, "train_seconds": 60.0} for n in (1, 2, 3)])
    return run


def segmentation_run(folder, row=EXPERIMENTS["seg-4"], *, seed=0, draw=None, splits=("validation", "test"), **changed):
    """A folder as seg_main.py leaves it, of drawn pixel counts (by `draw`, else the seed)."""
    flips = changed.pop("flips", row.flips)
    run = start(folder, row, seed, **changed)
    rng = np.random.default_rng(seed if draw is None else draw)
    metrics, tables = {"validation": None, "test": None, "best_epoch": 2, "epochs": 3, "flips": flips}, []
    for split in splits:
        drawn = [rng.integers((300, 0, 0, 500), (900, 200, 200, 5000)).tolist() for _ in IDS[split]]
        counts = dict(zip(IDS[split], map(tuple, drawn), strict=True))
        metrics[split] = summarize_counts(counts)
        tables.append(per_image_table(counts).assign(split=split))
    run.write_table("per_image.csv", pd.concat(tables))
    run.write_json("metrics.json", metrics)
    return folder


def classification_run(
    folder, row=EXPERIMENTS["cls-2-4"], *, seed=0, draw=None, truth=("validation", "test"), **changed
):
    """A folder as cls_main.py leaves it; the labels depend on the split alone, the probabilities on the seed."""
    views = {name: changed.pop(name, usual) for name, usual in (("views", row.views), ("flips", row.flips))}
    run = start(folder, row, seed, **changed)
    rng = np.random.default_rng(seed if draw is None else draw)
    metrics = {"validation": None, "test": None, "best_epoch": 2, "epochs": 3, **views}
    for split, ids in IDS.items():
        labels = labels_of(split)
        logits = rng.normal(size=(len(ids), 3)) + 1.2 * np.eye(3)[labels]
        probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        run.write_table(f"{split}_predictions.csv", predictions_table(ids, probabilities))
        if split in truth:
            by_id = dict(zip(ids, labels.tolist(), strict=True))
            run.write_table(f"{split}_truth_official.csv", official_truth(by_id).iloc[::-1])
            metrics[split] = summarize(probabilities, labels, groups=lesions(ids))
    run.write_json("metrics.json", metrics)
    return folder


def labels_of(split) -> np.ndarray:
    return np.random.default_rng(len(IDS[split])).permutation(np.arange(len(IDS[split])) % 3)


def own_row(task: str, name: str, net: str, pretrained: bool, **changed) -> Experiment:
    return replace(DEFAULTS[task], name=name, net=net, pretrained=pretrained, **default_attention(net) | changed)


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def example_results(root: Path) -> Path:
    """Three seeds of seg-4, one of seg-2; three of cls-2-4, one of a row with a name of its own."""
    for seed in (0, 1, 2):
        segmentation_run(root / f"seg-4/seed{seed}", seed=seed)
        classification_run(root / f"cls-2-4/seed{seed}", seed=seed)
    segmentation_run(root / "seg-2/seed0", EXPERIMENTS["seg-2"], draw=7, size=(128, 128), epochs=8)
    own = own_row("classification", "arl18-scratch", "arl18", False)
    classification_run(root / "arl18-scratch/seed4", own, seed=4, truth=("validation",))
    return root


def test_finds_runs_of_both_layouts_in_order(tmp_path):
    folders = [
        segmentation_run(tmp_path / "results/seg-4/seed0"),
        classification_run(tmp_path / "model/quick/cls-2-4/run3", seed=3, truth=("validation",)),
    ]
    runs = find_runs(tmp_path / "results", str(tmp_path / "model"), tmp_path / "nowhere", tmp_path / "model/quick")
    assert [run.folder for run in runs] == folders
    assert [(run.experiment, run.task, run.seed) for run in runs] == [
        ("seg-4", "segmentation", 0),
        ("cls-2-4", "classification", 3),
    ]
    assert runs[0].settings["size"] == [336, 224] and runs[0].metrics["best_epoch"] == 2
    assert runs[1].metrics["test"] is None
    assert find_runs(tmp_path / "nowhere") == [] == find_runs()


def test_leaves_out_what_is_no_finished_run(tmp_path):
    start(tmp_path / "seg-1/run0", EXPERIMENTS["seg-1"])
    (tmp_path / "seg-1/run0/config.json").write_text("{ a run that is just being written")
    segmentation_run(segmentation_run(tmp_path / "seg-4/run0"), seed=2)
    for name, config in (("bert", {"hidden_size": 768}), ("list", {"settings": [1]}), ("other", {"settings": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "metrics.json").write_text("{}")
        with pytest.raises(UserError, match="no finished run"):
            read_run(tmp_path / name)
    assert (tmp_path / "seg-4/run0.old1/metrics.json").is_file()
    assert [(run.folder.name, run.seed) for run in find_runs(tmp_path)] == [("run0", 2)]


def test_reads_what_a_segmenter_wrote(tmp_path):
    (run,) = find_runs(segmentation_run(tmp_path / "run0"))
    for split, ids in IDS.items():
        table = run.per_image(split)
        assert list(table["image_id"]) == ids and list(table.index) == list(range(len(ids)))
        assert table["jaccard"].mean() == pytest.approx(run.metrics[split]["official"]["jaccard"], abs=1e-15)
        assert table["tp"].dtype == np.int64 and run.image_ids(split) == set(ids)
    assert run.score("test", ("official", "dice")) == run.metrics["test"]["official"]["dice"]
    assert run.mask_ids("test") == [] and run.predicted_mask("test", IDS["test"][0]) is None


def test_reads_what_a_classifier_wrote(tmp_path):
    (run,) = find_runs(classification_run(tmp_path / "run0", truth=("validation",)))
    table = run.predictions("validation")
    assert list(table["image_id"]) == IDS["validation"] and list(table["label"]) == list(labels_of("validation"))
    scores = classification_scores(table[list(CLASSES)], table["label"])
    for name in ("mean_auc", "confusion_matrix", "balanced_accuracy"):
        assert scores[name] == run.metrics["validation"][name]
    assert list(run.predictions("test")) == ["image_id", *CLASSES]  # without the truth


def test_a_score_without_its_images_is_read_as_undefined(tmp_path):
    folder = classification_run(tmp_path / "run0")
    edit(folder / "metrics.json", lambda metrics: metrics["test"]["melanoma"].update(auc=None))
    assert read_run(folder).score("test", ("melanoma", "auc")) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    segmentation_run(root / "segmentation")
    classification_run(root / "classification")
    return root


def content(of: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(of)


def field(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda path: edit(path, change)


def rows(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda path: change(pd.read_csv(path)).to_csv(path, index=False)


def cell(row: int, column: str, value) -> Callable[[Path], object]:
    return rows(lambda table: table.assign(**{column: [*table[column][:row], value, *table[column][row + 1 :]]}))


DAMAGES = [
    ("config.json", content(b'{"settings": {')),
    ("config.json", content(b"\xff\xfe")),
    ("metrics.json", content(b'{"validation": {')),
    ("metrics.json", content(b"\xff\xfe")),
    ("metrics.json", field(lambda metrics: metrics.pop("test"))),
    ("metrics.json", field(lambda metrics: metrics["validation"].pop("official"))),
    ("metrics.json", field(lambda metrics: metrics.update(test={"images": 40, "mean_auc": 0.5}))),  # of the other task
    ("per_image.csv", Path.unlink),
    ("per_image.csv", content(b"\x00\xff")),
    ("per_image.csv", cell(3, "tp", -1)),
    ("per_image.csv", cell(3, "jaccard", 0.999)),  # not that of its counts
    ("per_image.csv", rows(lambda table: table[1:])),  # other images than metrics.json has
    ("per_image.csv", cell(1, "image_id", IDS["validation"][0])),
    ("test_masks.zip", content(b"PK\x03\x04" * 9)),
    ("validation_predictions.csv", cell(1, "nevus", 2)),
    ("validation_predictions.csv", rows(lambda table: table[:-1])),
    ("validation_predictions.csv", cell(1, "image_id", IDS["validation"][0])),
    ("validation_truth_official.csv", rows(lambda table: table.drop(columns="nevus"))),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_what_is_damaged_is_named_in_one_line_with_the_way_out(whole, tmp_path, name, damage):
    task = "classification" if name.startswith("validation") else "segmentation"
    folder = shutil.copytree(whole / task, tmp_path / "run0")
    damage(folder / name)
    with pytest.raises(UserError) as error:
        (run,) = find_runs(tmp_path)
        _ = run.predictions("validation") if task == "classification" else run.per_image("validation")
        run.predicted_mask("test", "ISIC_0")
    text = str(error.value)
    assert str(folder / name) in text and ("copy the run again" in text or "no such file" in text)
    assert len(text.splitlines()) == 1


def test_truth_of_other_images_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole / "classification", tmp_path / "run0")
    truth = folder / "test_truth_official.csv"
    truth.write_text(truth.read_text().replace(IDS["test"][0], "ISIC_9999999"))
    with pytest.raises(UserError, match="run0: predictions and truth of the test images name different ones"):
        read_run(folder).predictions("test")
