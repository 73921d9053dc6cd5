"""Results tables against independent computations, and published numbers kept apart."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_runs import (
    IDS,
    SCORED,
    classification_run,
    edit,
    example_results,
    labels_of,
    segmentation_run,
)
from utils import UserError
from utils.config import EXPERIMENTS
from utils.data.isic import CLASSES, lesions
from utils.evaluation.classification import TASKS, auc, official_truth, score_intervals
from utils.evaluation.export import Score
from utils.evaluation.runs import find_runs
from utils.evaluation.segmentation import official_scores, pooled_intervals, pooled_scores
from utils.evaluation.statistics import bootstrap_interval, holm, paired_bootstrap, resample, weighted_mean
from utils.evaluation.tables import (
    PUBLISHED,
    classification_table,
    compare,
    operating_points_table,
    pooled_table,
    published_table,
    segmentation_table,
)

OURS = ["experiment", "network", "pretrained", "size", "seeds"]
OFFICIAL = ["accuracy", "sensitivity", "specificity", "jaccard", "dice", "threshold_jaccard"]
BOTH = "mean of background and lesion: "
SHOWN = lesions(IDS["test"])
SHORT = {"MEL": "melanoma", "SK": "seborrheic_keratosis"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return example_results(tmp_path_factory.mktemp("project") / "results")


def line_of(table: pd.DataFrame, experiment: str) -> pd.Series:
    (number,) = np.flatnonzero(table["experiment"] == experiment)
    return table.iloc[number]


def scores_of(folder: Path, split: str) -> pd.DataFrame:
    return pd.read_csv(folder / "per_image.csv").query(f"split == '{split}'")


def assert_score(score: Score, values, interval) -> None:
    """The mean and deviation of the values by seed, and this interval."""
    assert score.mean == pytest.approx(sum(values) / len(values))
    assert score.std == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
    assert score.interval == pytest.approx(tuple(interval), abs=1e-12)


@pytest.mark.parametrize(("experiment", "seeds"), [("seg-2", (0,)), ("seg-4", (0, 1, 2))])
def test_segmentation_scores(folder, experiment, seeds):
    runs = find_runs(folder)
    official, pooled = (line_of(table(runs, "test"), experiment) for table in (segmentation_table, pooled_table))
    files = [scores_of(folder / f"{experiment}/seed{seed}", "test") for seed in seeds]
    counts = np.stack([file[["tp", "fp", "fn", "tn"]] for file in files])
    each, together = [official_scores(one) for one in counts], [pooled_scores(one) for one in counts]
    ends = pooled_intervals(counts, groups=SHOWN)
    for name in OFFICIAL:
        per_image = sum(file[name].to_numpy() for file in files) / len(files)
        assert_score(official[name], [one[name] for one in each], bootstrap_interval(per_image, SHOWN))
    for name in OFFICIAL[:5]:
        assert_score(pooled[name], [one[name] for one in together], ends[name])
    for name in OFFICIAL[3:]:
        values = [one["mean_of_background_and_lesion"][name] for one in together]
        assert_score(pooled[BOTH + name], values, ends["mean_of_background_and_lesion"][name])
    assert list(official.index) == [*OURS, *OFFICIAL, "note"] and official["seeds"] == len(seeds)
    if experiment == "seg-2":
        assert list(official[OURS]) == ["seg-2", "dense_unet", "no", "128×128", 1]
        assert official["note"] == f"128×128 px, 8 of 150 epochs, {SCORED}"


@pytest.mark.parametrize(
    ("experiment", "seeds", "split"), [("arl18-scratch", (4,), "validation"), ("cls-2-4", (0, 1, 2), "test")]
)
def test_classification_scores(folder, experiment, seeds, split):
    runs = find_runs(folder / experiment)
    table, points = (make(runs, split) for make in (classification_table, operating_points_table))
    line, point = line_of(table, experiment), line_of(points, experiment)
    files = [pd.read_csv(folder / f"{experiment}/seed{seed}/{split}_predictions.csv") for seed in seeds]
    probabilities = np.stack([file[list(CLASSES)] for file in files])
    ends = score_intervals(probabilities, labels_of(split), groups=lesions(IDS[split]))
    each = [run.metrics[split] for run in runs]
    for short, task in SHORT.items():
        for heading, name in (("AUC", "auc"), *((name, name) for name in OFFICIAL[:3])):
            assert_score(line[f"{short} {heading}"], [one[task][name] for one in each], ends[task][name])
        for specificity in ("0.80", "0.90", "0.95"):
            values = [one[task]["sensitivity_at_specificity"][specificity] for one in each]
            known = ends[task]["sensitivity_at_specificity"][specificity]
            assert_score(point[f"{short} at specificity {specificity}"], values, known)
    assert_score(line["mean AUC"], [one["mean_auc"] for one in each], ends["mean_auc"])


def test_classification_without_truth(tmp_path):
    """The scores of one run are known all the same; of several no interval can be made."""
    for seed in (0, 1):
        (classification_run(tmp_path / f"run{seed}", seed=seed) / "test_truth_official.csv").unlink()
    with pytest.raises(UserError, match="run0: no truth beside its predictions"):
        classification_table(find_runs(tmp_path), "test")
    (run,) = find_runs(tmp_path / "run0")
    score = line_of(classification_table([run], "test"), "cls-2-4")["mean AUC"]
    assert score == Score(run.metrics["test"]["mean_auc"], None, tuple(run.metrics["test"]["interval_95"]["mean_auc"]))


def test_undefined_and_missing_scores(tmp_path):
    path = classification_run(tmp_path / "run0") / "metrics.json"

    def undefine(metrics):
        metrics["test"]["melanoma"]["auc"] = metrics["test"]["mean_auc"] = None
        metrics["test"]["interval_95"]["melanoma"]["auc"] = metrics["test"]["interval_95"]["mean_auc"] = [None, None]

    edit(path, undefine)
    line = line_of(classification_table(find_runs(tmp_path), "test"), "cls-2-4")
    assert str(line["MEL AUC"]) == str(line["mean AUC"]) == "–" and math.isfinite(line["SK AUC"].mean)
    edit(path, lambda metrics: metrics["test"]["melanoma"].pop("auc"))
    with pytest.raises(UserError, match=r"run0.metrics.json: damaged, or of another version \(no 'auc'\)"):
        classification_table(find_runs(tmp_path), "test")


def test_rows_that_were_never_run_are_left_out(folder):
    table = segmentation_table(find_runs(folder), "test")
    assert list(table["experiment"]) == ["seg-2", "seg-4"]
    empty = segmentation_table([], "test")
    assert len(empty) == 0 and list(empty) == list(table)


def test_a_folder_can_name_a_row(tmp_path):
    """Of runs that are no other experiment but say more than its name, as results/cls-b1-scratch."""
    for folder in ("cls-2-4-scratch", "cls-2-4", "other"):
        classification_run(tmp_path / folder / "seed0", epochs=len(folder))
    names = classification_table(find_runs(tmp_path), "validation")["experiment"]
    assert sorted(names) == ["cls-2-4", "cls-2-4", "cls-2-4-scratch"]


def test_published_numbers_stand_in_a_table_of_their_own(folder):
    for task, make in (("segmentation", pooled_table), ("classification", classification_table)):
        published = published_table(task)
        assert all("published" in name for name in published.drop(columns="source"))
        assert not set(published) & set(make(find_runs(folder), "validation"))
    table = published_table("segmentation").set_index("published by")
    assert list(table.loc["seg-3"].dropna().drop("source")) == [0.9335, 0.8452, 0.9672, 0.8457, 0.9150, 0.7875]
    # The challenge's Jaccard is a mean over images, the earlier project's one of background and lesion.
    assert (table.notna().sum(axis=0).drop("source") <= 5).all() and math.isnan(
        table.loc["seg-3", PUBLISHED + "jaccard"]
    )


def test_the_papers_and_the_challenges_numbers():
    table = published_table("classification").set_index("published by")
    paper = [0.875, 0.850, 0.658, 0.896, 0.958, 0.868, 0.878, 0.867, 0.917]
    assert list(table.loc["ARL-CNN50"].drop("source")) == paper
    assert list(table[PUBLISHED + "mean AUC"].dropna()) == [0.917, 0.911, 0.910, 0.908]
    table = published_table("segmentation").set_index("published by")
    assert dict(table[PUBLISHED + "jaccard"].dropna()) == {"Yuan": 0.765, "Berseth": 0.762, "Bi": 0.760}


def test_compare_jaccard(folder):
    segmentation_runs = [run for run in find_runs(folder) if run.task == "segmentation"]
    own = segmentation_run(folder.parent / "more/run0", EXPERIMENTS["seg-1"], draw=9)
    table = compare([*segmentation_runs, *find_runs(own)], "jaccard")

    def jaccards(run: Path) -> np.ndarray:
        return scores_of(run, "test")["jaccard"].to_numpy()

    values = {"seg-1": jaccards(own), "seg-2": jaccards(folder / "seg-2/seed0")}
    values["seg-4"] = np.mean([jaccards(folder / f"seg-4/seed{seed}") for seed in (0, 1, 2)], axis=0)
    pairs = [("seg-1", "seg-2"), ("seg-1", "seg-4"), ("seg-2", "seg-4")]
    assert list(zip(table["first"], table["second"], strict=True)) == pairs
    weights = resample(40, SHOWN)  # images of one lesion together
    scores = {name: (each.mean(), weighted_mean(each, weights)) for name, each in values.items()}
    results = [paired_bootstrap(scores[a], scores[b]) for a, b in pairs]
    np.testing.assert_allclose(table["difference"], [values[a].mean() - values[b].mean() for a, b in pairs])
    np.testing.assert_allclose(table[["low", "high"]], [result.interval for result in results])
    np.testing.assert_allclose(table["p"], [result.p_value for result in results])
    np.testing.assert_allclose(table["p (Holm)"], holm([result.p_value for result in results]))
    assert set(table["images"]) == {40} and list(table)[-2:] == ["p", "p (Holm)"]


@pytest.mark.parametrize("number", [0, 1])
def test_compare_auc(folder, number):
    table = compare(find_runs(folder), f"{TASKS[number]}_auc", "validation")
    positive = labels_of("validation") == number
    files = [folder / f"cls-2-4/seed{seed}" for seed in (0, 1, 2)] + [folder / "arl18-scratch/seed4"]
    *a, b = (pd.read_csv(file / "validation_predictions.csv")[TASKS[number]].to_numpy() for file in files)
    weights = resample(25, lesions(IDS["validation"]))
    drawn = np.mean([auc(one, positive, weights) for one in a], axis=0), auc(b, positive, weights)
    result = paired_bootstrap((np.mean([auc(one, positive) for one in a]), drawn[0]), (auc(b, positive), drawn[1]))
    (line,) = table.to_dict("records")
    assert (line["first"], line["second"], line["images"]) == ("cls-2-4", "arl18-scratch", 25)
    assert line["difference"] == pytest.approx(np.mean([auc(one, positive) for one in a]) - auc(b, positive))
    assert (line["low"], line["high"]) == pytest.approx(result.interval)
    assert line["p"] == line["p (Holm)"] == pytest.approx(result.p_value)
    cell = line_of(classification_table(find_runs(folder), "validation"), "cls-2-4")[f"{list(SHORT)[number]} AUC"]
    assert line["difference"] == pytest.approx(cell.mean - auc(b, positive))  # what is compared is what the table shows


def test_the_more_pairs_the_more_resamples(tmp_path):
    """The smallest p of 2,000, times 55 pairs, would not be below 0.05."""
    for epochs in range(1, 12):
        segmentation_run(tmp_path / f"run{epochs}", draw=epochs, splits=("validation",), epochs=epochs)
    p_values = compare(find_runs(tmp_path), "dice", "validation")["p"]
    assert len(p_values) == 55
    fewer = p_values[p_values < 1] * 5501 / 2
    np.testing.assert_allclose(fewer, fewer.round())


def test_compare_refuses_other_images(tmp_path):
    segmentation_run(tmp_path / "run0")
    other = segmentation_run(tmp_path / "run1", EXPERIMENTS["seg-2"], draw=1)
    path = other / "per_image.csv"
    path.write_text(path.read_text().replace(IDS["test"][3], "ISIC_7777777"))
    with pytest.raises(UserError, match=r"^seg-2 and seg-4 were scored on different test images.*leave one out$"):
        compare(find_runs(tmp_path), "dice", "test")
    assert len(compare(find_runs(tmp_path), "dice", "validation")) == 1


def test_compare_refuses_other_labels(tmp_path):
    classification_run(tmp_path / "run0")
    other = classification_run(tmp_path / "run1", EXPERIMENTS["cls-2-1"])
    assert len(compare(find_runs(tmp_path), "melanoma_auc")) == 1
    ids = IDS["test"]
    text = official_truth({id_: (label + 1) % 3 for id_, label in zip(ids, labels_of("test"), strict=True)})
    text.to_csv(other / "test_truth_official.csv", index=False)
    with pytest.raises(UserError, match="were scored on different test images or labels"):
        compare(find_runs(tmp_path), "melanoma_auc")


def test_compare_without_a_pair_is_empty(folder):
    for metric in ("jaccard", "melanoma_auc"):
        table = compare([], metric)
        assert len(table) == 0 and {"first", "second", "difference", "p", "p (Holm)"} <= set(table)
    assert len(compare(find_runs(folder / "seg-2"), "jaccard")) == 0
