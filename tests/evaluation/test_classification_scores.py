"""The classification scores: against their definitions, scikit-learn."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from utils.data.isic import CLASSES
from utils.evaluation.classification import (
    SPECIFICITIES,
    TASKS,
    auc,
    average_precision,
    calibration_error,
    classification_scores,
    official_predictions,
    predictions_table,
    score_intervals,
    sensitivity_at_specificity,
    summarize,
)

AT_05, AT_SPECIFICITY = "at_0.5", "sensitivity_at_specificity"


def draw(images: int, seed: int, shares=(0.195, 0.15, 0.655), grid: int | None = None) -> tuple:
    """Probabilities [N, 3] that know something of the labels [N]; with `grid`, multiples of 1/grid: many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=shares)
    logits = rng.normal(size=(images, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if grid:
        probabilities = np.array([rng.multinomial(grid, row) for row in probabilities]) / grid
    return probabilities, labels


def by_path(nested: dict, *parents: str) -> dict[tuple[str, ...], object]:
    paths = {}
    for name, value in nested.items():
        paths |= by_path(value, *parents, name) if isinstance(value, dict) else {(*parents, name): value}
    return paths


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),  # area, average precision, sensitivity at specificity 1/2
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], (1, 1, 1)),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], (0, (2 / 4 + 1 / 3) / 2, 0)),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], (0.5, 0.5, 0)),  # one threshold takes all or none
        ([0.3, 0.5, 0.5, 0.9], [0, 1, 0, 1], (3.5 / 4, (1 + 2 / 3) / 2, 1)),
        ([0.3, 0.5, 0.7, 0.9], [1, 0, 1, 0], (1 / 4, (2 / 4 + 1 / 2) / 2, 0.5)),
        ([1], [1], (np.nan, 1, np.nan)),
        ([0, 1], [0, 0], (np.nan, np.nan, np.nan)),
        ([0, 1], [1, 1], (np.nan, 1, np.nan)),
    ],
)
def test_scores_by_hand(scores, positive, expected):
    for dtype in (np.float32, np.float64):
        arguments = np.array(scores, dtype), np.array(positive, bool)
        values = auc(*arguments), average_precision(*arguments), sensitivity_at_specificity(*arguments, 0.5)
        assert values == pytest.approx(expected, abs=1e-15, nan_ok=True)
        assert all(type(value) is float for value in values)


@pytest.mark.parametrize("specificity", [*SPECIFICITIES, 0.55])  # 0.55 · 100 is more than 55 in floats
@pytest.mark.parametrize("twenties", [1, 3, 5, 24])
def test_a_specificity_that_is_met_exactly_counts(specificity, twenties):
    above = round((1 - specificity) * 20) * twenties  # so many negatives may score above the threshold, and no more
    negatives = np.arange(20 * twenties)[::-1]
    just_passes, just_fails = negatives[above] + 0.5, negatives[above]
    scores, positive = np.array([*negatives, just_passes, just_fails]), np.arange(20 * twenties + 2) >= 20 * twenties
    assert sensitivity_at_specificity(scores, positive, specificity) == 0.5


@pytest.mark.parametrize("scores", [([0.1, 0.2], [True]), ([0.1, 0.2], [1, 0]), ([0.1, np.nan], [True, False])])
def test_scores_that_cannot_be_ranked(scores):
    with pytest.raises(ValueError, match=r"expected finite scores \[N\] and positive bool"):  # ~1 is -2, another index
        auc(*scores)


@pytest.mark.parametrize(
    ("rows", "labels", "expected"),
    [
        # (0.6, 0.7]: one of two right, gap |1 - 1.31|; (0.7, 0.8]: 0.71 right, gap 0.29
        ([[0.62, 0.38], [0.69, 0.31], [0.71, 0.29]], [0, 1, 0], (0.31 + 0.29) / 3),
        ([[0.5, 0.5]] * 2, [0, 1], 0),  # a tie names the first class, right in half
        ([[1.0, 0.0]] * 4, [0, 0, 0, 1], 0.25),  # p = 1 belongs to the last part
        ([[0.5, 0.3, 0.2], [0.45, 0.3, 0.25], [0.1, 0.3, 0.6]], [0, 1, 2], (0.05 + 0.4) / 3),  # 0.5 is in (0.4, 0.5]
    ],
)
def test_calibration_error_by_hand(rows, labels, expected):
    assert calibration_error(rows, labels) == pytest.approx(expected, abs=1e-15)
    (each_twice,) = calibration_error(rows, labels, weights=np.full((1, len(rows)), 2.0))
    assert each_twice == pytest.approx(expected, abs=1e-15)


def scikit_learn_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[tuple[str, ...], float]:
    """What scikit-learn gives for the same images, by path; NaN where a class that it needs is missing."""
    predicted, scores = probabilities.argmax(axis=1), {}
    for number, task in enumerate(TASKS):
        p, positive = probabilities[:, number], labels == number
        some, both = positive.any(), positive.any() and not positive.all()
        scores[task, "auc"] = metrics.roc_auc_score(positive, p) if both else np.nan
        scores[task, "average_precision"] = metrics.average_precision_score(positive, p) if some else np.nan
        for rule, says in (((), predicted == number), ((AT_05,), p > 0.5)):
            scores[(task, *rule, "accuracy")] = metrics.accuracy_score(positive, says)
            recalls = metrics.recall_score(positive, says, labels=[True, False], average=None, zero_division=np.nan)
            scores[(task, *rule, "sensitivity")], scores[(task, *rule, "specificity")] = recalls
        for wanted in SPECIFICITIES:
            path = (task, AT_SPECIFICITY, f"{wanted:.2f}")
            scores[path] = np.nan
            if both:
                false_positives, sensitivity, _ = metrics.roc_curve(positive, p, drop_intermediate=False)
                scores[path] = sensitivity[1 - false_positives >= wanted - 1e-12].max()
    scores["mean_auc",] = sum(scores[task, "auc"] for task in TASKS) / 2
    scores["accuracy",] = metrics.accuracy_score(labels, predicted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        scores["balanced_accuracy",] = metrics.balanced_accuracy_score(labels, predicted)
    return scores


@pytest.mark.parametrize("grid", [None, 4])
@pytest.mark.parametrize(
    ("images", "shares"), [(600, (0.195, 0.15, 0.655)), (90, (0.03, 0.9, 0.07)), (7, (0.4, 0.3, 0.3))]
)
def test_every_score_is_scikit_learns(images, shares, grid):
    for seed in range(2):
        probabilities, labels = draw(images, seed, shares, grid)
        ours = by_path(classification_scores(probabilities, labels))
        matrix = ours.pop(("confusion_matrix",))
        expected = metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(3))
        assert matrix == expected.tolist()
        assert ours.pop(("calibration_error",)) == calibration_error(probabilities, labels)
        expected = scikit_learn_scores(probabilities, labels)
        assert {path: np.nan if value is None else value for path, value in ours.items()} == pytest.approx(
            expected, abs=1e-12, nan_ok=True
        )


def test_scores_by_path_and_in_plain_numbers():
    probabilities = [[0.6, 0.3, 0.1], [0.45, 0.1, 0.45], [0.2, 0.4, 0.4], [0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]
    scores = classification_scores(probabilities, [0, 2, 2, 1, 0])
    assert tuple(scores) == (
        "mean_auc", *TASKS, "accuracy", "balanced_accuracy", "calibration_error", "confusion_matrix"
    )  # fmt: skip
    # Ties go to the first class: image 2 is taken for a melanoma, image 3 for a seborrheic keratosis.
    assert scores["confusion_matrix"] == [[2, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert scores["accuracy"] == 3 / 5 and scores["balanced_accuracy"] == pytest.approx(2 / 3)
    melanoma = scores["melanoma"]
    assert (melanoma["accuracy"], melanoma["sensitivity"], melanoma["specificity"]) == (4 / 5, 1, 2 / 3)
    assert melanoma[AT_05] == {"accuracy": 4 / 5, "sensitivity": 1 / 2, "specificity": 1}  # 0.5 is not above 0.5
    assert melanoma[AT_SPECIFICITY] == {"0.80": 1, "0.90": 1, "0.95": 1}
    plain = json.loads(json.dumps(scores, allow_nan=False))
    assert plain == scores and by_path(plain).keys() == by_path(scores).keys()


MELANOMA, KERATOSIS = TASKS
RANKED = ("auc", *(f"{AT_SPECIFICITY}/{value:.2f}" for value in SPECIFICITIES))
WITHOUT_POSITIVES = (*RANKED, "average_precision", "sensitivity", f"{AT_05}/sensitivity")
WITHOUT_NEGATIVES = (*RANKED, "specificity", f"{AT_05}/specificity")


@pytest.mark.parametrize(
    ("classes", "undefined"),
    [
        ((2,), {MELANOMA: WITHOUT_POSITIVES, KERATOSIS: WITHOUT_POSITIVES}),
        ((0,), {MELANOMA: WITHOUT_NEGATIVES, KERATOSIS: WITHOUT_POSITIVES}),
        ((1, 2), {MELANOMA: WITHOUT_POSITIVES}),
    ],
)
def test_what_lacks_its_images_is_undefined(classes, undefined):
    probabilities, labels = draw(30, seed=0)
    kept = np.isin(labels, classes)
    probabilities, labels = probabilities[kept], labels[kept]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_scores(probabilities, labels)
        intervals = score_intervals(probabilities, labels)
    for nested, nothing in ((scores, None), (intervals, [None, None])):
        assert json.loads(json.dumps(nested, allow_nan=False)) == nested
        expected = {f"{task}/{name}" for task, names in undefined.items() for name in names} | {"mean_auc"}
        assert {"/".join(path) for path, value in by_path(nested).items() if value == nothing} == expected
    recalls = [np.mean(probabilities.argmax(axis=1)[labels == number] == number) for number in classes]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 3)), np.empty(0, int), "no images"),
        ([0.2, 0.3, 0.5], [0, 1, 2], "probabilities must be"),
        ([[0.2, 0.3, np.nan]], [0], "without NaN"),
        ([[0.6, 0.6, -0.2]], [0], "without NaN"),
        ([[0.2, 0.3, 0.5], [0.2, 0.3, 0.502]], [0, 1], "sum to 1"),
        ([[0.2, 0.3, 0.5]], [3], "in 0 to 2"),
        ([[0.2, 0.3, 0.5]], [1.0], "labels must be integers"),
    ],
)
def test_predictions_that_cannot_be_scored(probabilities, labels, message):
    for function in (classification_scores, score_intervals):
        with pytest.raises(ValueError, match=message):
            function(probabilities, labels)


def test_three_classes_are_three_and_roundings_pass():
    with pytest.raises(ValueError, match=r"\[N, 3\], got shape \(1, 2\)"):
        classification_scores([[0.5, 0.5]], [0])
    rounded = np.array([[0.333, 0.333, 0.333], [0.667, 0.333, 0.0009]], np.float32)
    assert classification_scores(rounded, np.array([0, 0], np.uint8))["accuracy"] == 1


def test_a_summary_is_plain_and_whole():
    probabilities, labels = draw(150, seed=0)
    summary = summarize(probabilities, labels)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary and summary["images"] == 150
    assert by_path(summary).items() >= by_path(classification_scores(probabilities, labels)).items()
    assert summary["interval_95"] == score_intervals(probabilities, labels)


IDS = [f"ISIC_00{number}" for number in (15062, 12086, 15132, 14963)]


def test_predictions_survive_their_file(tmp_path):
    probabilities = draw(4, seed=0)[0].astype(np.float32)
    table = predictions_table(IDS, probabilities)
    assert table.columns.tolist() == ["image_id", *CLASSES] and table["image_id"].tolist() == IDS
    assert (table.dtypes[list(CLASSES)] == np.float64).all() and np.array_equal(table[list(CLASSES)], probabilities)
    table.to_csv(tmp_path / "predictions.csv", index=False)
    again = pd.read_csv(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(again, table, rtol=1e-15)
    official = official_predictions(again.assign(fold=1)[["nevus", "fold", *again.columns[:3]]])
    pd.testing.assert_frame_equal(official, again.rename(columns={"image_id": "image"}), check_exact=True)
