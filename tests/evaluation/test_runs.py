"""Run folders as the scripts write them: found, read, told apart, and refused when damaged."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils import UserError
from utils.config import DEFAULTS, EXPERIMENTS, Experiment, default_attention, experiments
from utils.data.isic import CLASSES, LEFT_OUT, Sample, read_labels, read_split
from utils.evaluation.classification import classification_scores, official_truth, predictions_table, score_intervals
from utils.evaluation.rows import deviations, result_rows, row_names
from utils.evaluation.runs import find_runs, read_run
from utils.evaluation.segmentation import SegmentationCounts, summarize
from utils.model.run import Run, digest

TRAIN = {
    "segmentation": "1969 images, sha256 b2eebcf001ee3ca1",
    "classification": "3289 images, sha256 04d780f6fd6f49b4",
}
VALIDATION = {
    "segmentation": "150 images, sha256 bd160fd18a14af16",
    "classification": "150 images, sha256 cf672a04da0db6dc",
}
IDS = {"validation": [f"ISIC_{n:07}" for n in range(25)], "test": [f"ISIC_{n:07}" for n in range(100, 140)]}
SCORED = "scored on 40 images"  # not on the challenge's 600


def start(folder, row, seed=0, **changed) -> Run:
    settings = {**asdict(row), "seed": seed, "amp": "auto", "weights": None, "stored_size": (420, 280)}
    for name in ("published", "views", "flips"):
        del settings[name]
    settings |= {"train_images": TRAIN[row.task], "validation_images": VALIDATION[row.task]}
    run = Run(folder, settings | changed, {"test_images": "600 images, sha256 6e490b64a6b0f9c5"}, resume=False)
    run.write_history([{"epoch": n, "lr": 1e-4 / n, "train_loss": 1 / n} for n in (1, 2, 3)])
    return run


def segmentation_run(folder, row=EXPERIMENTS["seg-4"], *, seed=0, draw=None, splits=("validation", "test"), **changed):
    """A folder as seg_main.py leaves it, of drawn pixel counts (by `draw`, else the seed)."""
    flips = changed.pop("flips", row.flips)
    run = start(folder, row, seed, **changed)
    rng = np.random.default_rng(seed if draw is None else draw)
    metrics, tables = {"validation": None, "test": None, "best_epoch": 2, "epochs": 3, "flips": flips}, []
    for split in splits:
        counts = SegmentationCounts()
        for id_ in IDS[split]:
            counts.add_counts(id_, tuple(int(n) for n in rng.integers((300, 0, 0, 500), (900, 200, 200, 5000))))
        metrics[split] = summarize(counts)
        tables.append(counts.per_image().assign(split=split))
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
            intervals = score_intervals(probabilities, labels, resamples=100)
            scores = classification_scores(probabilities, labels)
            metrics[split] = {"images": len(ids), **scores, "interval_95": intervals}
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


# --- finding ----------------------------------------------------------------------------------------------------


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
        segmentation_run(tmp_path / "results/seg-4/seed1", seed=1),
        classification_run(tmp_path / "model/quick/cls-2-4/run3", seed=3, truth=("validation",)),
    ]
    runs = find_runs(tmp_path / "results", str(tmp_path / "model"), tmp_path / "nowhere", tmp_path / "model/quick")
    assert [run.folder for run in runs] == folders
    assert [(run.experiment, run.task, run.seed) for run in runs] == [
        ("seg-4", "segmentation", 0),
        ("seg-4", "segmentation", 1),
        ("cls-2-4", "classification", 3),
    ]
    assert runs[0].settings["size"] == [336, 224] and runs[0].metrics["best_epoch"] == 2
    assert runs[2].metrics["test"] is None
    assert find_runs(folders[1])[0].folder == folders[1]
    assert find_runs(tmp_path / "nowhere") == [] == find_runs()


def test_leaves_out_what_is_no_finished_run(tmp_path):
    start(tmp_path / "seg-1/run0", EXPERIMENTS["seg-1"])
    (tmp_path / "seg-1/run0/config.json").write_text("{ a run that is just being written")
    segmentation_run(segmentation_run(tmp_path / "seg-4/run0"), seed=2)
    for name, config in (("bert", {"hidden_size": 768}), ("list", {"settings": [1]}), ("other", {"settings": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "metrics.json").write_text("{}")
    assert (tmp_path / "seg-4/run0.old1/metrics.json").is_file()
    assert [run.folder.name for run in find_runs(tmp_path)] == ["run0"]
    assert find_runs(tmp_path)[0].seed == 2


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("content", [b'{"settings": {', b"[1, 2]", b"\xff\xfe", b""])
def test_damaged_json_is_named(tmp_path, name, content):
    segmentation_run(tmp_path / "seg-4/run0")
    (tmp_path / "seg-4/run0" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"run0.{name}: damaged \(.*move this run's folder away$"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda metrics: metrics.pop("test"),
        lambda metrics: metrics["validation"].pop("official"),
        lambda metrics: metrics["test"].pop("pooled"),
        lambda metrics: metrics.update(test={"images": 3}),
    ],
)
def test_metrics_that_do_not_fit_are_named(tmp_path, change):
    folder = segmentation_run(tmp_path / "run0")
    edit(folder / "metrics.json", change)
    with pytest.raises(UserError, match=r"run0.metrics.json: not the scores of a segmentation run"):
        find_runs(tmp_path)


def test_metrics_of_the_other_task_are_refused(tmp_path):
    folder = segmentation_run(tmp_path / "seg-4/run0")
    shutil.copy(classification_run(tmp_path / "cls/run0") / "metrics.json", folder)
    with pytest.raises(UserError, match=r"run0.metrics.json: not the scores of a segmentation run"):
        find_runs(tmp_path)
    edit(folder / "config.json", lambda config: config["settings"].update(task="detection"))
    with pytest.raises(UserError, match="not the scores of a detection run"):
        find_runs(tmp_path)


def test_runs_that_do_not_say_their_task_are_recognised(tmp_path):
    for folder in (segmentation_run(tmp_path / "a"), classification_run(tmp_path / "b")):
        edit(folder / "config.json", lambda config: config["settings"].pop("task"))
    assert [run.task for run in find_runs(tmp_path)] == ["segmentation", "classification"]


# --- reading ----------------------------------------------------------------------------------------------------


def test_reads_what_a_segmenter_wrote(tmp_path):
    (run,) = find_runs(segmentation_run(tmp_path / "run0"))
    for split, ids in IDS.items():
        table = run.per_image(split)
        assert list(table["image_id"]) == ids and list(table.index) == list(range(len(ids)))
        assert table["jaccard"].mean() == pytest.approx(run.metrics[split]["official"]["jaccard"], abs=1e-15)
        assert table["tp"].dtype == np.int64
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]
    assert run.history()[2] == {"epoch": 3, "lr": 1e-4 / 3, "train_loss": 1 / 3}


def test_reads_what_a_classifier_wrote(tmp_path):
    (run,) = find_runs(classification_run(tmp_path / "run0"))
    for split, ids in IDS.items():
        table = run.predictions(split)
        assert list(table["image_id"]) == ids and list(table["label"]) == list(labels_of(split))
        scores = classification_scores(table[list(CLASSES)], table["label"])
        for name in ("mean_auc", "confusion_matrix", "balanced_accuracy"):
            assert scores[name] == run.metrics[split][name]


def test_predictions_without_truth_have_no_label(tmp_path):
    (run,) = find_runs(classification_run(tmp_path / "run0", truth=("validation",)))
    assert list(run.predictions("test")) == ["image_id", *CLASSES]
    assert list(run.predictions("validation")) == ["image_id", *CLASSES, "label"]


@pytest.mark.parametrize("name", ["per_image.csv", "history.csv"])
def test_absent_and_damaged_tables_are_named(tmp_path, name):
    (run,) = find_runs(segmentation_run(tmp_path / "run0"))
    read = run.history if name == "history.csv" else lambda: run.per_image("test")
    path, text = run.folder / name, (run.folder / name).read_text()
    path.unlink()
    with pytest.raises(UserError, match=rf"run0.{name}: no such file"):
        read()
    for damaged in ("", "a,b\n1,2\n", text + ",,,,,,,,,,,\n", text[:8] + "\n" + text[8:] * 2):
        path.write_text(damaged)
        with pytest.raises(UserError, match=rf"run0.{name}: ") as error:
            read()
        assert "\n" not in str(error.value)


def test_tables_of_other_images_are_refused(tmp_path):
    (run,) = find_runs(classification_run(tmp_path / "run0"))
    predictions, truth = run.folder / "test_predictions.csv", run.folder / "test_truth_official.csv"
    whole, known = predictions.read_text(), truth.read_text()
    lines = whole.splitlines(keepends=True)
    predictions.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"test_predictions.csv: 39 rows of 39 test images, metrics.json is of 40"):
        run.predictions("test")
    predictions.write_text("".join([*lines[:-1], lines[1]]))
    with pytest.raises(UserError, match="40 rows of 39 test images"):
        run.predictions("test")
    predictions.write_text(whole)
    truth.write_text(known.replace(IDS["test"][0], "ISIC_9999999"))
    with pytest.raises(UserError, match="run0: predictions and truth of the test images name different ones"):
        run.predictions("test")
    truth.write_text(known)
    assert len(run.predictions("test")) == 40


# --- what strangers and accidents do to a run -------------------------------------------------------------------------

DEEP = '{"settings": ' + "[" * 100_000 + "]" * 100_000 + "}"
GONE = object()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    segmentation_run(root / "segmentation")
    classification_run(root / "classification")
    return root


def put(path, names, value) -> None:
    """Changes what lies at `names` in a JSON file; GONE takes it away."""

    def change(content):
        for name in names[:-1]:
            content = content[name]
        content.pop(names[-1]) if value is GONE else content.update({names[-1]: value})

    edit(path, change)


@pytest.mark.fault("a setting of another kind in a run's config.json", "one line that names it, exit code 2")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("name", value) for value in (["seg-4"], "two\nlines", "\x1b[2J", "\ud800", 3)),
        *((name, value) for name in ("net", "loss", "optimizer") for value in (None, {})),
        *((name, [1]) for name in ("task", "attention", "alpha", "train_views", "train_images", "validation_images")),
        *(("seed", value) for value in ("0", True, -1, 1.0, 10**20)),
        *((name, value) for name in ("epochs", "patience", "batch_size") for value in ("8", None)),
        *((name, value) for name in ("lr", "weight_decay") for value in ("1e-4", np.nan, np.inf, 10**400, [[1]])),
        ("batch_size", 0),
        ("pretrained", "no"),
        *(("size", value) for value in (None, 224, [224], [224, "224"], [224, -1], [10**6, 10**6])),
        *(("class_weights", value) for value in (1, ["a"], [10**400])),
        *(("weights", value) for value in (1, [], {"file": None}, {"file": "a", "source": 3})),
        *(("ensemble", value) for value in (None, {"of": "seg-4"}, {"of": "seg-4", "seeds": 3})),
    ],
)
def test_a_setting_of_another_kind_is_named(whole, tmp_path, name, value):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    put(folder / "config.json", ("settings", name), value)
    with pytest.raises(UserError, match=rf"run0.config.json: damaged \({name} is .+\); restore it, or move") as error:
        find_runs(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_data_folder_that_is_none_is_named(whole, tmp_path):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    put(folder / "config.json", ("data",), 1.5)
    with pytest.raises(UserError, match=r"config.json: damaged \(data is 1.5\)"):
        find_runs(folder)


def test_a_data_folder_whose_path_is_not_utf8_is_one(whole, tmp_path):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    put(folder / "config.json", ("data",), os.fsdecode(b"/data\xe9"))
    assert os.fsencode(find_runs(folder)[0].data) == b"/data\xe9"


@pytest.mark.fault("a score that is none in a run's metrics.json", "one line that names it, exit code 2")
@pytest.mark.parametrize(
    ("task", "names", "value"),
    [
        *(("segmentation", ("test",), value) for value in (GONE, 3, [1], {}, "x")),
        *(("segmentation", ("test", "images"), value) for value in (GONE, None, 0, "40", 1.5)),
        *(("segmentation", ("flips",), value) for value in (None, 1)),
        *(("segmentation", (name,), "8") for name in ("best_epoch", "epochs")),
        *(("segmentation", ("test", "official"), value) for value in (None, [], "x")),
        *(
            ("segmentation", ("test", "official", "dice"), value)
            for value in (GONE, "0.5", [[1]], np.nan, np.inf, 10**400, -0.1, 1.1, True)
        ),
        *(
            ("segmentation", ("test", "official_interval_95", "dice"), value)
            for value in (GONE, 0.5, [0.5], [0.5, 2], [None, None], [0.5, "x"])
        ),
        ("segmentation", ("test", "pooled", "jaccard"), "x"),
        ("segmentation", ("test", "pooled", "mean_of_background_and_lesion"), {}),
        ("classification", ("views",), [1]),
        *(("classification", ("test", name), GONE) for name in ("mean_auc", "melanoma", "interval_95")),
        ("classification", ("test", "melanoma", "sensitivity_at_specificity", "0.90"), "x"),
        ("classification", ("test", "seborrheic_keratosis", "specificity"), "x"),
        ("classification", ("test", "interval_95", "melanoma", "auc"), [0.9]),
    ],
)
def test_a_score_that_is_none_is_named(whole, tmp_path, task, names, value):
    folder = shutil.copytree(whole / task, tmp_path / "run0")
    put(folder / "metrics.json", names, value)
    with pytest.raises(
        UserError, match=rf"run0.metrics.json: not the scores of a {task} run.+; restore it, or"
    ) as error:
        find_runs(folder)
    assert len(str(error.value).splitlines()) == 1 and (names[-1] in str(error.value) or names[0] in str(error.value))


@pytest.mark.fault(
    "JSON of a run nested 100,000 deep, with a number of 5,000 digits, or a pipe in its place", "one line"
)
@pytest.mark.parametrize("text", [DEEP, '{"settings": ' + "9" * 5000 + "}", "\udcff", None])
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_json_that_cannot_be_read_is_named(whole, tmp_path, name, text):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    if text is None and name == "metrics.json":
        return  # a pipe there is no finished run
    (folder / name).unlink()
    if text is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"run0.{name}: damaged \(.+\); restore it, or move") as error:
        find_runs(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.fault("a number that is none in a table of a run", "one line that names the file, exit code 2")
@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        *(("per_image.csv", "tp", value) for value in ("-1", "1.5", "abc", "inf", "9" * 25, "9" * 18, "True")),
        *(("per_image.csv", "jaccard", value) for value in ("-1", "1.5", "abc", "inf", "9" * 400)),
        *(("per_image.csv", name, "3") for name in ("split", "accuracy")),
        *(("test_predictions.csv", "melanoma", value) for value in ("-1", "1.5", "abc", "inf", "1")),
        *(("test_truth_official.csv", "melanoma", value) for value in ("-1", "abc", "0.5")),
        *((f"test_{table}.csv", None, '"two\nlines"') for table in ("predictions", "truth_official")),
        *(("history.csv", "epoch", value) for value in ("inf", "nan", "2", "1.5", "9" * 25)),
        *(("history.csv", "train_loss", value) for value in ("abc", "True")),
    ],
)
@pytest.mark.parametrize("rows", [1, 99])
def test_a_number_that_is_none_is_named(whole, tmp_path, name, column, value, rows):
    task = "segmentation" if name == "per_image.csv" else "classification"
    folder = shutil.copytree(whole / task, tmp_path / "run0")
    first, *lines = (folder / name).read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for line in cells[:rows]:
        line[first.split(",").index(column) if column else 0] = value
    (folder / name).write_text("\n".join([first, *map(",".join, cells)]))
    run = read_run(folder)
    read = run.history if name == "history.csv" else run.per_image if task == "segmentation" else run.predictions
    with pytest.raises(UserError, match=rf"run0.{name}: .+; copy .* again") as error:
        read() if name == "history.csv" else read("validation" if name == "per_image.csv" else "test")
    assert len(str(error.value).splitlines()) == 1


def test_an_image_of_no_pixels_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    table = pd.read_csv(folder / "per_image.csv")
    table.loc[3, ["tp", "fp", "fn", "tn"]] = 0
    table.to_csv(folder / "per_image.csv", index=False)
    with pytest.raises(UserError, match=r"per_image.csv: an image of no pixels; copy it again from the run"):
        read_run(folder).per_image("validation")


def test_a_table_that_is_a_pipe_is_not_waited_for(whole, tmp_path):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    (folder / "history.csv").unlink()
    os.mkfifo(folder / "history.csv")
    with pytest.raises(UserError, match=r"history.csv: damaged \(no regular file\)"):
        read_run(folder).history()


def test_undefined_values_are_read(whole, tmp_path):
    """A loss of no step that counted, a validation score without its images, a score without its images."""
    folder = shutil.copytree(whole / "classification", tmp_path / "run0")
    path = folder / "history.csv"
    path.write_text(path.read_text().replace("0.5", "nan"))
    put(folder / "metrics.json", ("test", "melanoma", "auc"), None)
    put(folder / "metrics.json", ("test", "interval_95", "melanoma", "auc"), [None, None])
    assert np.isnan(read_run(folder).history()[1]["train_loss"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 9, b"PK\x05\x06" + bytes(18)])
def test_damaged_masks_are_refused(whole, tmp_path, content):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    (folder / "test_masks.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"test_masks.zip: damaged, or without ISIC_0 \(.+\); copy it again") as error:
        read_run(folder).predicted_mask("test", "ISIC_0")
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_whose_name_breaks_the_line_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "two\nlines")
    with pytest.raises(UserError, match=r"two.nlines': a line break or control character") as error:
        find_runs(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_link_to_itself_is_named(tmp_path, whole):
    folder = shutil.copytree(whole / "segmentation", tmp_path / "run0")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(UserError, match=r"config.json: damaged \(.*symbolic links"):
        read_run(folder)


# --- deviations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_with_its_rows_settings_deviates_in_nothing(tmp_path, name):
    make = segmentation_run if EXPERIMENTS[name].task == "segmentation" else classification_run
    assert deviations(find_runs(make(tmp_path / "run7", EXPERIMENTS[name], seed=7, amp="off"))[0]) == []


@pytest.mark.parametrize(
    ("experiment", "changed", "words"),
    [
        ("seg-4", {"size": (128, 128)}, ["128×128 px"]),
        ("seg-4", {"size": (224, 336)}, ["224×336 px"]),
        ("seg-4", {"epochs": 8}, ["8 of 150 epochs"]),
        ("seg-4", {"epochs": 300}, ["300 epochs"]),
        ("seg-4", {"pretrained": False}, ["not pretrained"]),
        ("seg-1", {"pretrained": True}, ["pretrained"]),
        ("seg-4", {"lr": 1e-3}, ["lr 1e-3"]),
        ("seg-4", {"lr": 2.5e-4}, ["lr 2.5e-4"]),
        ("seg-4", {"weight_decay": 0}, ["weight decay 0"]),
        ("seg-4", {"batch_size": 4}, ["batch 4"]),
        ("seg-4", {"patience": 10}, ["patience 10"]),
        ("seg-4", {"loss": "ce"}, ["ce loss"]),
        ("seg-5", {"attention": "channel"}, ["attention channel"]),
        ("seg-5", {"alpha": "fixed"}, ["alpha fixed"]),
        ("seg-5", {"attention": "none", "alpha": None}, ["attention none"]),
        ("cls-2-4", {"class_weights": (1, 2, 0.25)}, ["class weights 1 2 0.25"]),
        ("cls-1-2", {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4}, ["sgd", "lr 1e-2", "weight decay 1e-4"]),
        ("cls-1-2", {"net": "resnet18"}, ["network resnet18"]),
        ("cls-2-4", {"views": "1"}, ["scored by the whole frame"]),
        ("cls-2-4", {"views": "center9", "flips": True}, ["scored by nine central patches", "flips averaged"]),
        ("seg-4", {"train_images": "800 images, sha256 f5c4808d24d5e8e4"}, ["800 other train images (f5c480)"]),
        ("seg-4", {"train_images": "2000 images, sha256 6c9fe817e0e7cca8"}, ["copies of scored images in training"]),
        (
            "cls-2-4",
            {"train_images": "1969 images, sha256 5cc1395c5e7c5f0e"},
            ["without the 1320 extra training images"],
        ),
        (
            "cls-2-4",
            {"train_images": "2000 images, sha256 e207a8a3f1179450"},
            ["without the 1320 extra training images", "copies of scored images in training"],
        ),
        ("cls-2-4", {"train_images": "3320 images, sha256 4019f43efcbd443f"}, ["copies of scored images in training"]),
        (
            "cls-2-4",
            {"validation_images": "40 images, sha256 0123456789abcdef"},
            ["40 other validation images (012345)"],
        ),
        ("seg-4", {"train_images": None}, ["train images not recorded"]),
        ("seg-4", {"weights": {"file": "resnet18-5c106cde.pth"}}, []),
        ("seg-4", {"weights": {"file": "mine.pth"}}, ["weights mine.pth"]),
        ("cls-2-4", {"pretrained": True, "weights": {"file": "mine.pth"}}, ["pretrained", "weights mine.pth"]),
        ("seg-4", {"size": (128, 128), "epochs": 8, "lr": 1e-3}, ["128×128 px", "8 of 150 epochs", "lr 1e-3"]),
    ],
)
def test_deviations_in_words(tmp_path, experiment, changed, words):
    row = EXPERIMENTS[experiment]
    make = segmentation_run if row.task == "segmentation" else classification_run
    assert deviations(find_runs(make(tmp_path / "run0", row, **changed))[0]) == words


@pytest.mark.parametrize(
    "field", [name for name in asdict(DEFAULTS["segmentation"]) if name not in ("name", "task", "published", "views")]
)
def test_no_setting_of_a_row_can_differ_unseen(tmp_path, field):
    """Also one that a later version of the table adds."""
    other = {
        "attention": "channel",
        "alpha": "fixed",
        "class_weights": (9, 9, 9),
        "size": (64, 64),
        "pretrained": False,
    }
    other |= {"net": "unet", "loss": "ce", "optimizer": "sgd", "train_views": "frame", "flips": True}
    (run,) = find_runs(segmentation_run(tmp_path / "run0", EXPERIMENTS["seg-5"], **{field: other.get(field, 77)}))
    assert len(deviations(run)) == 1


def test_settings_that_an_older_run_did_not_keep_are_passed_over(tmp_path):
    folder = segmentation_run(tmp_path / "run0", lr=1e-3)
    keep = {"name", "net", "pretrained", "seed", "lr", "train_images", "validation_images"}
    edit(folder / "config.json", lambda c: c.update(settings={n: v for n, v in c["settings"].items() if n in keep}))
    assert deviations(find_runs(tmp_path)[0]) == ["lr 1e-3"]


def test_own_names_are_held_against_the_defaults(tmp_path):
    row = own_row("classification", "arl18-scratch", "arl18", False, class_weights=(1.0, 2.0, 3.0))
    (run,) = find_runs(classification_run(tmp_path / "run0", row, epochs=5))
    assert deviations(run) == ["5 of 100 epochs", "class weights 1 2 3"]
    row = own_row("classification", "resnet18-pretrained", "resnet18", True)
    assert deviations(find_runs(classification_run(tmp_path / "run1", row))[0]) == []


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


# --- rows -------------------------------------------------------------------------------------------------------


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
        ("seg-1", "", []),
        ("seg-2", "", ["run1"]),
        ("seg-3", "", []),
        ("seg-4", "", ["run2", "run0"]),
        ("seg-4", "128×128 px", ["run3"]),
        ("seg-5", "", []),
        ("seg-b1", "", []),
        ("unet-scratch", "ce loss", ["run8"]),
    ]
    assert rows[4].label == "seg-4 (128×128 px)" and rows[1].label == "seg-2"
    assert rows[0].settings["net"] == "unet" and rows[4].settings["size"] == [128, 128]
    assert told(result_rows(runs[::-1], "segmentation", "validation")) == told(rows)
    on_test = told(result_rows(runs, "segmentation", "test"))
    assert [row[0] for row in on_test] == ["seg-1", "seg-2", "seg-3", "seg-4", "seg-4", "seg-5", "seg-b1"]  # not run8
    assert on_test[3] == ("seg-4", SCORED, ["run2", "run0"]) and on_test[4][1] == f"128×128 px, {SCORED}"
    assert told(result_rows(runs, "classification", "test")) == [
        (name, "", []) for name in experiments("classification")
    ]


def test_a_seed_counts_once_in_a_row(tmp_path):
    segmentation_run(tmp_path / "run0", seed=5)
    shutil.copytree(tmp_path / "run0", tmp_path / "run1")  # the same run, found in two places
    segmentation_run(tmp_path / "run2", seed=5, draw=1)
    segmentation_run(tmp_path / "run3", seed=6)
    segmentation_run(tmp_path / "run4", seed=5, draw=2)
    rows = [row for row in result_rows(find_runs(tmp_path), "segmentation", "validation") if row.runs]
    assert told(rows) == [
        ("seg-4", "", ["run0", "run3"]),
        ("seg-4", "seed 5 again (1)", ["run2"]),
        ("seg-4", "seed 5 again (2)", ["run4"]),
    ]


def test_runs_with_other_images_are_rows_of_their_own(tmp_path):
    segmentation_run(tmp_path / "run0")
    for number, sha256 in ((1, "1111111111111111"), (2, "2222222222222222")):
        segmentation_run(tmp_path / f"run{number}", seed=number, train_images=f"1000 images, sha256 {sha256}")
    rows = result_rows(find_runs(tmp_path), "segmentation", "validation")
    assert [row.note for row in rows if row.runs] == [
        "",
        "1000 other train images (111111)",
        "1000 other train images (222222)",
    ]


def test_tables_of_a_row_come_in_one_order(tmp_path):
    for seed in (0, 1):
        classification_run(tmp_path / f"run{seed}", seed=seed)
    path = tmp_path / "run1/test_predictions.csv"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *lines[::-1]]))
    (row,) = [row for row in result_rows(find_runs(tmp_path), "classification", "test") if row.runs]
    tables = row.per_image("test")
    assert [list(table["image_id"]) for table in tables] == [IDS["test"]] * 2
    assert [list(table["label"]) for table in tables] == [list(labels_of("test"))] * 2
    assert not tables[0]["melanoma"].equals(tables[1]["melanoma"])


def test_seeds_scored_on_other_images_are_refused(tmp_path):
    for seed in (0, 1):
        segmentation_run(tmp_path / f"run{seed}", seed=seed)
    path = tmp_path / "run1/per_image.csv"
    path.write_text(path.read_text().replace("ISIC_0000105", "ISIC_0000999"))
    (row,) = [row for row in result_rows(find_runs(tmp_path), "segmentation", "test") if row.runs]
    with pytest.raises(UserError, match=r"run1 and .*run0 were scored on different images: leave one out"):
        row.per_image("test")
    assert len(row.per_image("validation")) == 2


def test_seeds_with_other_labels_are_refused(tmp_path):
    for seed in (0, 1):
        classification_run(tmp_path / f"run{seed}", seed=seed)
    path = tmp_path / "run1/test_truth_official.csv"
    ids = pd.read_csv(path)["image"].to_numpy()
    flipped = {id_: (2 if n else 0) for n, id_ in enumerate(ids)}
    path.write_text(official_truth(flipped).to_csv(index=False))
    (row,) = [row for row in result_rows(find_runs(tmp_path), "classification", "test") if row.runs]
    with pytest.raises(UserError, match="were scored on different images"):
        row.per_image("test")


def test_names_tell_rows_apart(tmp_path):
    segmentation_run(tmp_path / "a", EXPERIMENTS["seg-1"], splits=("validation",))
    segmentation_run(tmp_path / "b", EXPERIMENTS["seg-2"], splits=("validation",), epochs=8)
    for name, size in (("c", (336, 224)), ("d", (128, 128))):
        segmentation_run(tmp_path / name, EXPERIMENTS["seg-4"], splits=("validation",), size=size)
    rows = [row for row in result_rows(find_runs(tmp_path), "segmentation", "validation") if row.runs]
    assert row_names(rows) == ["seg-1", "seg-2*", "seg-4", "seg-4 (128×128 px)"]
