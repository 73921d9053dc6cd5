"""Results tables against independent computations, published numbers kept apart, and the section of README.md."""

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
from utils import config as experiments
from utils.config import EXPERIMENTS
from utils.data.isic import CLASSES
from utils.evaluation.classification import TASKS, auc, classification_scores, official_truth, score_intervals
from utils.evaluation.rows import result_rows
from utils.evaluation.runs import find_runs
from utils.evaluation.segmentation import METRICS, official_scores, pooled_scores
from utils.evaluation.statistics import bootstrap_interval, delong_test, holm, paired_bootstrap, wilcoxon
from utils.evaluation.tables import (
    Score,
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
SHORT = {"MEL": "melanoma", "SK": "seborrheic_keratosis"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return example_results(tmp_path_factory.mktemp("project") / "results")


def line_of(table: pd.DataFrame, experiment: str) -> pd.Series:
    (number,) = np.flatnonzero(table["experiment"] == experiment)
    return table.iloc[number]


def counts_of(folder: Path, split: str) -> np.ndarray:
    table = pd.read_csv(folder / "per_image.csv")
    return table[table["split"] == split][["tp", "fp", "fn", "tn"]].to_numpy()


def resampled(statistic, images: int) -> tuple[float, float]:
    """The percentile interval by one resample after the other, as `utils.evaluation.classification.score_intervals` does."""
    rng = np.random.default_rng(0)
    return tuple(np.quantile([statistic(rng.integers(images, size=images)) for _ in range(2000)], (0.025, 0.975)))


# --- segmentation -----------------------------------------------------------------------------------------------


def test_official_scores_of_one_seed_are_those_of_its_metrics(folder):
    table = segmentation_table(find_runs(folder), "test")
    assert list(table) == [*OURS, *OFFICIAL, "note"]
    line, (run,) = line_of(table, "seg-2"), find_runs(folder / "seg-2")
    scores = run.metrics["test"]
    for name in OFFICIAL:
        assert line[name] == Score(scores["official"][name], None, tuple(scores["official_interval_95"][name]))
    assert list(line[OURS]) == ["seg-2", "dense_unet", "no", "128×128", 1]
    assert line["note"] == f"128×128 px, 8 of 150 epochs, {SCORED}"


def test_official_scores_of_several_seeds(folder):
    line = line_of(segmentation_table(find_runs(folder), "validation"), "seg-4")
    folders = [folder / f"seg-4/seed{seed}" for seed in (0, 1, 2)]
    means = [official_scores(counts_of(one, "validation")) for one in folders]
    files = [pd.read_csv(one / "per_image.csv").query("split == 'validation'") for one in folders]
    for name in OFFICIAL:
        values = [one[name] for one in means]
        assert line[name].mean == pytest.approx(sum(values) / 3)
        assert line[name].std == pytest.approx(math.sqrt(sum((value - sum(values) / 3) ** 2 for value in values) / 2))
        per_image = sum(file[name].to_numpy() for file in files) / 3
        assert line[name].interval == pytest.approx(bootstrap_interval(per_image), abs=1e-12)
    assert line["seeds"] == 3 and line["note"] == "" and line["pretrained"] == "yes"


def test_pooled_scores(folder):
    table = pooled_table(find_runs(folder), "test")
    for experiment, seeds in (("seg-4", (0, 1, 2)), ("seg-2", (0,))):
        line = line_of(table, experiment)
        counts = [counts_of(folder / experiment / f"seed{seed}", "test") for seed in seeds]
        for heading, name, of_both in [(name, name, False) for name in OFFICIAL[:5]] + [
            (BOTH + name, name, True) for name in OFFICIAL[3:]
        ]:

            def statistic(one, name=name, of_both=of_both):
                scores = pooled_scores(one)
                return (scores["mean_of_background_and_lesion"] if of_both else scores)[name]

            values = [statistic(one) for one in counts]
            assert line[heading].mean == pytest.approx(np.mean(values))
            assert line[heading].std == (pytest.approx(np.std(values, ddof=1)) if len(seeds) > 1 else None)
        rows = np.random.default_rng(0).integers(40, size=(2000, 40))
        sums = [one[rows].sum(axis=1) for one in counts]
        jaccard = np.mean([s[:, 0] / (s[:, 0] + s[:, 1] + s[:, 2]) for s in sums], axis=0)
        assert line["jaccard"].interval == pytest.approx(np.quantile(jaccard, (0.025, 0.975)), abs=1e-12)


# --- classification ---------------------------------------------------------------------------------------------


def test_classification_scores_of_one_seed_are_those_of_its_metrics(folder):
    table = classification_table(find_runs(folder), "validation")
    line, (run,) = line_of(table, "arl18-scratch"), find_runs(folder / "arl18-scratch")
    scores = run.metrics["validation"]
    for short, task in SHORT.items():
        for heading, name in (("AUC", "auc"), *((name, name) for name in OFFICIAL[:3])):
            expected = Score(scores[task][name], None, tuple(scores["interval_95"][task][name]))
            assert line[f"{short} {heading}"] == expected
    assert line["mean AUC"] == Score(scores["mean_auc"], None, tuple(scores["interval_95"]["mean_auc"]))
    assert "arl18-scratch" not in set(classification_table(find_runs(folder), "test")["experiment"])  # no truth


def test_classification_scores_of_several_seeds(folder):
    line, labels = line_of(classification_table(find_runs(folder), "test"), "cls-2-4"), labels_of("test")
    files = [pd.read_csv(folder / f"cls-2-4/seed{seed}/test_predictions.csv") for seed in (0, 1, 2)]
    probabilities = [file[list(CLASSES)].to_numpy() for file in files]
    each = [classification_scores(one, labels) for one in probabilities]
    for short, task in SHORT.items():
        for heading, name in (("AUC", "auc"), *((name, name) for name in OFFICIAL[:3])):
            values = [one[task][name] for one in each]
            score = line[f"{short} {heading}"]
            assert score.mean == pytest.approx(np.mean(values)) and score.std == pytest.approx(np.std(values, ddof=1))
            assert score.interval[0] <= score.mean <= score.interval[1]
    assert line["mean AUC"].mean == pytest.approx(np.mean([one["mean_auc"] for one in each]))

    def mean_auc(rows):
        return np.mean([auc(one[rows, n], labels[rows] == n) for one in probabilities for n in (0, 1)])

    def sensitivity(rows):
        those = rows[labels[rows] == 1]
        return np.mean([(one[those].argmax(axis=1) == 1).mean() for one in probabilities])

    assert line["mean AUC"].interval == pytest.approx(resampled(mean_auc, 40), abs=1e-9)
    assert line["SK sensitivity"].interval == pytest.approx(resampled(sensitivity, 40), abs=1e-9)


def test_operating_points(folder):
    table, runs = operating_points_table(find_runs(folder), "validation"), find_runs(folder)
    own = line_of(table, "arl18-scratch")
    (run,) = (run for run in runs if run.experiment == "arl18-scratch")
    for short, task in SHORT.items():
        for specificity in ("0.80", "0.90", "0.95"):
            found, interval = (
                scores[task]["sensitivity_at_specificity"][specificity]
                for scores in (run.metrics["validation"], run.metrics["validation"]["interval_95"])
            )
            assert own[f"{short} at specificity {specificity}"] == Score(found, None, tuple(interval))
    (row,) = (row for row in result_rows(runs, "classification", "validation") if len(row.runs) == 3)
    interval = score_intervals(*row.probabilities("validation"))["melanoma"]["sensitivity_at_specificity"]["0.90"]
    score = line_of(table, "cls-2-4")["MEL at specificity 0.90"]
    each = [run.metrics["validation"]["melanoma"]["sensitivity_at_specificity"]["0.90"] for run in row.runs]
    assert score == Score(np.mean(each), np.std(each, ddof=1), tuple(interval))


def test_an_undefined_score_is_marked(tmp_path):
    folder = classification_run(tmp_path / "run0")

    def undefine(metrics):
        metrics["test"]["melanoma"]["auc"] = metrics["test"]["mean_auc"] = None
        metrics["test"]["interval_95"]["melanoma"]["auc"] = metrics["test"]["interval_95"]["mean_auc"] = [None, None]

    edit(folder / "metrics.json", undefine)
    line = line_of(classification_table(find_runs(folder), "test"), "cls-2-4")
    assert str(line["MEL AUC"]) == str(line["mean AUC"]) == "–" and math.isfinite(line["SK AUC"].mean)


def test_several_seeds_without_truth_are_refused(tmp_path):
    for seed in (0, 1):
        (classification_run(tmp_path / f"run{seed}", seed=seed) / "test_truth_official.csv").unlink()
    with pytest.raises(UserError, match="run0: no truth beside its predictions"):
        classification_table(find_runs(tmp_path), "test")
    assert len(classification_table(find_runs(tmp_path / "run0"), "test")) == 8  # its intervals are in metrics.json


# --- published numbers --------------------------------------------------------------------------------------------


def all_tables(runs, split="test"):
    return segmentation_table(runs, split), pooled_table(runs, split), classification_table(runs, split)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_published_numbers_never_share_a_column_with_ours(folder, split):
    ours, theirs = set(), set()
    for table in all_tables(find_runs(folder), split):
        for name in table:
            kinds = {type(value) for value in table[name].tolist()}
            assert name.startswith("published (2022, test) ") == (kinds == {float})
            assert Score not in kinds or kinds == {Score}
            (theirs if kinds == {float} else ours).add(name)
    for task in ("segmentation", "classification"):
        theirs |= set(published_table(task))
    assert all("published" in name for name in theirs - {"source"})
    assert not any("published" in name for name in ours) and not ours & theirs


def test_published_numbers_enter_no_score_of_ours(folder, monkeypatch):
    runs = find_runs(folder)
    before = all_tables(runs)
    for row in EXPERIMENTS.values():
        changed = {n: dict.fromkeys(v, -1.0) if isinstance(v, dict) else -1.0 for n, v in row.published.items()}
        monkeypatch.setitem(experiments.EXPERIMENTS, row.name, experiments.replace(row, published=changed))
    for old, new in zip(before, all_tables(runs), strict=True):
        ours = [name for name in old if not name.startswith("published")]
        pd.testing.assert_frame_equal(old[ours], new[ours])
        there = new[[name for name in new if name not in ours]].to_numpy()
        assert set(there[~np.isnan(there)]) <= {-1.0}


def test_published_numbers_stand_beside_their_row(folder):
    runs = find_runs(folder)
    line = line_of(pooled_table(runs, "test"), "seg-3")
    numbers = {name.removeprefix("published (2022, test) "): value for name, value in line.items() if "2022" in name}
    names = ["accuracy", "sensitivity", "specificity", *(BOTH + name for name in OFFICIAL[3:])]
    assert numbers == dict(zip(names, (0.9335, 0.8452, 0.9672, 0.8457, 0.9150, 0.7875), strict=True))
    line = line_of(classification_table(runs, "test"), "cls-2-3")
    assert [line[f"published (2022, test) {short} {name}"] for short in SHORT for name in ("AUC", "sensitivity")] == [
        0.822, 0.487, 0.929, 0.833,
    ]  # fmt: skip
    own = line_of(classification_table(runs, "validation"), "arl18-scratch")
    assert own[[name for name in own.index if "published" in name]].isna().all()


def test_the_papers_and_the_challenges_numbers():
    table = published_table("classification").set_index("published by")
    assert list(table.loc["ARL-CNN50"].drop("source")) == [
        0.875, 0.850, 0.658, 0.896, 0.958, 0.868, 0.878, 0.867, 0.917,
    ]  # fmt: skip
    assert list(table["published (test) mean AUC"].drop("ResNet50")) == [0.917, 0.911, 0.910, 0.908]
    assert table.loc["ResNet50", "published (test) SK specificity"] == 0.837
    assert table.loc["Matsunaga"].isna().sum() == 8
    table = published_table("segmentation")
    assert dict(zip(table["published by"], table["published (test) jaccard"], strict=True)) == {
        "Yuan": 0.765, "Berseth": 0.762, "Bi": 0.760,
    }  # fmt: skip


# --- rows without runs, text --------------------------------------------------------------------------------------


def test_rows_without_runs_are_there_and_marked(folder):
    table = segmentation_table(find_runs(folder), "test")
    assert list(table["experiment"]) == ["seg-1", "seg-2", "seg-3", "seg-4", "seg-5", "seg-b1"]
    line = line_of(table, "seg-3")
    assert list(line[OURS]) == ["seg-3", "dense_unet", "yes", "336×224", 0]
    assert {str(line[name]) for name in OFFICIAL} == {"–"} and line["note"] == ""
    for table in all_tables([]):
        assert len(table) in (6, 8) and (table["seeds"] == 0).all()
        assert {str(value) for name in table for value in table[name] if isinstance(value, Score)} == {"–"}


def test_older_runs_without_a_size_have_a_line(tmp_path):
    edit(segmentation_run(tmp_path / "run0") / "config.json", lambda config: config["settings"].pop("size"))
    assert line_of(segmentation_table(find_runs(tmp_path), "test"), "seg-4")["size"] == "–"


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.7568, 0.0041, (0.7224, 0.7896)), ".757 ± .004 [.722, .790]"),
        (Score(0.7568, None, (0.7224, 0.7896)), ".757 [.722, .790]"),
        (Score(1.0, 0.0, (0.99951, 1.0)), "1.000 ± .000 [1.000, 1.000]"),
        (Score(0.0, None, (-0.0, 0.1004)), ".000 [.000, .100]"),
        (Score(), "–"),
        # 13/16, and what another order of summation makes of it, round alike
        (Score(0.8125, None, (0.8125 + 2e-16, 0.8125 - 2e-16)), ".812 [.812, .812]"),
    ],
)
def test_scores_as_text(score, text):
    assert str(score) == text


# --- paired tests -------------------------------------------------------------------------------------------------


def test_compare_jaccard(folder):
    segmentation_runs = [run for run in find_runs(folder) if run.task == "segmentation"]
    own = segmentation_run(folder.parent / "more/run0", EXPERIMENTS["seg-1"], draw=9)
    table = compare([*segmentation_runs, *find_runs(own)], "jaccard")
    files = {
        name: pd.read_csv(folder / f"{name}/per_image.csv")
        for name in ("seg-4/seed0", "seg-4/seed1", "seg-4/seed2", "seg-2/seed0")
    }
    files["seg-1"] = pd.read_csv(own / "per_image.csv")
    values = {name: file[file["split"] == "test"]["jaccard"].to_numpy() for name, file in files.items()}
    values["seg-4"] = np.mean([values.pop(f"seg-4/seed{seed}") for seed in (0, 1, 2)], axis=0)
    values["seg-2"] = values.pop("seg-2/seed0")
    pairs = [("seg-1", "seg-2"), ("seg-1", "seg-4"), ("seg-2", "seg-4")]
    assert list(zip(table["first"], table["second"], strict=True)) == [(f"{a}*", f"{b}*") for a, b in pairs]
    results = [paired_bootstrap(values[a], values[b]) for a, b in pairs]
    np.testing.assert_allclose(table["difference"], [values[a].mean() - values[b].mean() for a, b in pairs])
    np.testing.assert_allclose(table[["low", "high"]], [result.interval for result in results])
    np.testing.assert_allclose(table["p"], [result.p_value for result in results])
    np.testing.assert_allclose(table["p (Holm)"], holm([result.p_value for result in results]))
    of_wilcoxon = [wilcoxon(values[a], values[b]) for a, b in pairs]
    np.testing.assert_allclose(table["p Wilcoxon"], of_wilcoxon)
    np.testing.assert_allclose(table["p Wilcoxon (Holm)"], holm(of_wilcoxon))
    assert set(table["images"]) == {40} and list(table)[-4:] == ["p", "p (Holm)", "p Wilcoxon", "p Wilcoxon (Holm)"]


@pytest.mark.parametrize("number", [0, 1])
def test_compare_auc(folder, number):
    table = compare(find_runs(folder), f"{TASKS[number]}_auc", "validation")
    positive = labels_of("validation") == number
    files = [folder / f"cls-2-4/seed{seed}" for seed in (0, 1, 2)] + [folder / "arl18-scratch/seed4"]
    *a, b = (pd.read_csv(file / "validation_predictions.csv")[TASKS[number]].to_numpy() for file in files)
    result = delong_test(positive, np.stack(a), b)
    (line,) = table.to_dict("records")
    assert (line["first"], line["second"], line["images"]) == ("cls-2-4", "arl18-scratch", 25)
    assert line["difference"] == pytest.approx(np.mean([auc(one, positive) for one in a]) - auc(b, positive))
    assert (line["low"], line["high"]) == pytest.approx(result.interval)
    assert line["p"] == line["p (Holm)"] == pytest.approx(result.p_value)
    cell = line_of(classification_table(find_runs(folder), "validation"), "cls-2-4")[f"{list(SHORT)[number]} AUC"]
    assert line["difference"] == pytest.approx(cell.mean - auc(b, positive))  # what is compared is what the table shows


def test_compare_refuses_other_images(tmp_path):
    segmentation_run(tmp_path / "run0")
    other = segmentation_run(tmp_path / "run1", EXPERIMENTS["seg-2"], draw=1)
    path = other / "per_image.csv"
    path.write_text(path.read_text().replace(IDS["test"][3], "ISIC_7777777"))
    with pytest.raises(UserError, match=r"seg-2 \(.*\) and seg-4 \(.*\) were scored on different test images") as error:
        compare(find_runs(tmp_path), "dice", "test")
    assert "\n" not in str(error.value)
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
    (other / "test_truth_official.csv").unlink()
    with pytest.raises(UserError, match="run1: no truth beside its predictions"):
        compare(find_runs(tmp_path), "melanoma_auc")


def test_compare_without_a_pair_is_empty(folder):
    for metric in (*METRICS, "melanoma_auc"):
        table = compare([], metric)
        assert len(table) == 0 and {"first", "second", "difference", "p", "p (Holm)"} <= set(table)
    assert len(compare(find_runs(folder / "seg-2"), "jaccard")) == 0
    with pytest.raises(ValueError, match=r"metric 'auc': expected one of accuracy, .*seborrheic_keratosis_auc"):
        compare([], "auc")
