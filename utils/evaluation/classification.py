"""Classification scores from probabilities: melanoma and seborrheic keratosis, each against the other two classes; of
other classes than ISIC 2017's, each against the rest.

- Free of a threshold: AUC of each task and their mean (what the ISIC 2017 challenge ranks by, arXiv:1710.05006),
  average precision, sensitivity at given specificities.
- By the most probable of the classes, of equal ones the first (primary): each task's "accuracy", "sensitivity",
  "specificity"; the confusion matrix, accuracy, balanced accuracy, calibration error.
- "at_0.5": accuracy, sensitivity and specificity at p > 0.5, the challenge's threshold.

A value without the images it needs is undefined: NaN from the functions of one value, None in the dictionaries.
Elsewhere a number stands there that would pass for a result (1 in `isic-challenge-scoring`, 0 in scikit-learn).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.data.isic import CLASSES
from utils.evaluation.statistics import RESAMPLES, Groups, interval, resample, weighted_mean

TASKS = CLASSES[:2]
SPECIFICITIES = (0.80, 0.90, 0.95)


def scored_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Those that are told from the rest, each by its AUC: the challenge's two of ISIC 2017's classes, else all."""
    return TASKS if tuple(classes) == CLASSES else tuple(classes)


def auc(scores: ArrayLike, positive: ArrayLike, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher.

    A tie counts half (Mann–Whitney). NaN without positives or without negatives.
    scores: [N] finite numbers; positive: bool [N]; else ValueError. weights: float64 [R, N], how often each of R
    resamples has each image; then there are R values.
    """
    positives, negatives, often, others = _both_sides(scores, positive, weights)
    below = _running_sum(others)  # [R, negatives + 1]
    won = sum(below[:, np.searchsorted(negatives, positives, side=side)] for side in ("left", "right"))
    with np.errstate(invalid="ignore"):
        return _one_or_all(weighted_mean(won, often) / (2 * below[:, -1]), weights)


def average_precision(scores: ArrayLike, positive: ArrayLike, weights: np.ndarray | None = None) -> float | np.ndarray:
    """The precision at each positive's own score, averaged over the positives (scikit-learn's definition).

    Precision at a score: the share of positives among the images that score at least as high. NaN without positives.
    """
    positives, negatives, often, others = _both_sides(scores, positive, weights)
    true, false = (
        below[:, -1:] - below[:, np.searchsorted(side, positives, side="left")]
        for side, below in ((positives, _running_sum(often)), (negatives, _running_sum(others)))
    )
    # Where nothing scores as high in a resample, the positive itself is not in it and has no weight.
    return _one_or_all(weighted_mean(true / np.maximum(true + false, 1), often), weights)


def sensitivity_at_specificity(
    scores: ArrayLike, positive: ArrayLike, specificity: float, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """The highest sensitivity of any threshold (positive: score ≥ threshold) with at least this specificity.

    No interpolation between thresholds. Other arguments and NaN as in `auc`.
    """
    positives, negatives, often, others = _both_sides(scores, positive, weights)
    below = _running_sum(others)
    # The fewest negatives that must lie below the threshold; less a little, because the product misses exact ratios.
    needed = np.ceil(specificity * below[:, -1:] - 1e-9)
    highest = np.append(-np.inf, negatives)[(below < needed).sum(axis=1)]  # [R]: the highest of those
    found = weighted_mean(positives > highest[:, None], often)
    return _one_or_all(np.where(below[:, -1] > 0, found, np.nan), weights)


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Expected calibration error of the most probable class, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    |share correct − mean confidence| in each tenth ((m − 1)/10, m/10] of [0, 1], averaged with the number of images as
    weights. Few images raise it. probabilities: [N, C], C ≥ 2; labels: integers [N] in [0, C). weights: as in `auc`.
    """
    probabilities = _as_probabilities(probabilities, np.shape(probabilities)[-1])
    labels = _as_labels(labels, *probabilities.shape)
    often = np.ones((1, labels.size)) if weights is None else weights
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    parts = np.searchsorted(np.arange(1, 10) / 10, confidence, side="left")
    gaps = np.array([np.bincount(parts, weights=one * (correct - confidence)) for one in often])  # [R, parts]
    return _one_or_all(np.abs(gaps).sum(axis=1) / often.sum(axis=1), weights)


def classification_scores(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str] = CLASSES
) -> dict[str, Any]:
    """Every score of the module's docstring, as plain numbers that `json.dumps` takes; None where undefined.

    probabilities: [N, C], columns as the C `classes`; labels: integers [N], indices into them.

        {"mean_auc",
         "melanoma": {"auc", "average_precision", "accuracy", "sensitivity", "specificity",
                      "at_0.5": {"accuracy", "sensitivity", "specificity"},
                      "sensitivity_at_specificity": {"0.80", "0.90", "0.95"}},
         "seborrheic_keratosis" (or each of the other `classes`): the same,
         "accuracy", "balanced_accuracy", "calibration_error",
         "confusion_matrix": [[int] * C] * C, rows truth, columns prediction}

    balanced_accuracy is the mean sensitivity of the classes that have images. ValueError for no images, other shapes,
    probabilities outside [0, 1] or whose rows miss the sum 1 by more than 1e-3, labels that are no index of a class.
    """
    probabilities = _as_probabilities(probabilities, len(classes))
    labels = _as_labels(labels, *probabilities.shape)
    scores = _scores(probabilities, labels, np.ones((1, labels.size)), classes)
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    plain = _combined(lambda values: None if np.isnan(values[0]) else float(values[0]), scores)
    return {**plain, "confusion_matrix": matrix.tolist()}


def score_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    resamples: int = RESAMPLES,
    classes: Sequence[str] = CLASSES,
    groups: Groups = None,
) -> dict[str, Any]:
    """95 % bootstrap intervals [low, high] of `classification_scores`, in its structure, without the confusion matrix.

    probabilities: [N, C]; or [S, N, C] of S trainings, and the intervals are of the scores' means over them, every
    resample with the same images for all. A score does without the resamples that leave it undefined (no image of a
    class), and is [None, None] when none is left. The calibration error is larger in resamples than in the sample, on
    average: its interval can miss the value and tells the spread only. groups: as in `statistics.resample`.
    """
    probabilities = np.asarray(probabilities)
    trainings = probabilities if probabilities.ndim == 3 else [probabilities]
    each = [_as_probabilities(one, len(classes)) for one in trainings]
    labels = _as_labels(labels, *each[0].shape)
    drawn = [_scores(one, labels, resample(labels.size, groups, resamples), classes) for one in each]

    def ends(*values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(end) else end for end in interval(np.mean(values, axis=0))]

    return _combined(ends, *drawn)


def summarize(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str] = CLASSES, groups: Groups = None
) -> dict[str, Any]:
    """Scores with 95 % bootstrap intervals over images or groups of them, as plain values for JSON."""
    scores = classification_scores(probabilities, labels, classes)
    intervals = score_intervals(probabilities, labels, classes=classes, groups=groups)
    return {"images": len(labels), **scores, "interval_95": intervals}


def predictions_table(
    image_ids: Sequence[Hashable],
    probabilities: ArrayLike,
    classes: Sequence[str] = CLASSES,
    groups: Mapping[str, str | None] | None = None,
) -> pd.DataFrame:
    """One row an image: image_id, a float64 column for each of the `classes`, and group where any image has one.

    probabilities: [N, C]; groups: by image id, what is drawn together for intervals (`utils.data.isic.lesions`).
    ValueError for probabilities that `classification_scores` refuses.
    """
    table = pd.DataFrame(_as_probabilities(probabilities, len(classes)), columns=list(classes))
    table.insert(0, "image_id", list(image_ids))
    return table.assign(group=table["image_id"].map(groups)) if any((groups or {}).values()) else table


def official_predictions(table: pd.DataFrame, classes: Sequence[str] = CLASSES) -> pd.DataFrame:
    """A `predictions_table` as `isic-challenge-scoring classification TRUTH.csv PREDICTION.csv` reads it.

    That wants a column "image", and exactly the truth's other columns and images, in any order.
    """
    return predictions_table(table["image_id"], table[list(classes)], classes).rename(columns={"image_id": "image"})


def official_truth(labels: Mapping[str, int], classes: Sequence[str] = CLASSES) -> pd.DataFrame:
    """Labels by image id (`utils.data.isic.read_labels`) as the TRUTH.csv of the official command: 0.0 and 1.0.

    All classes, nevus too: the command's means are over the columns that it finds.
    """
    table = predictions_table(list(labels), np.eye(len(classes))[[*labels.values()]], classes)
    return table.rename(columns={"image_id": "image"})


def _scores(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Every scalar of `classification_scores`, as values [R] in the resamples; NaN where undefined."""
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    members = [labels == number for number in range(len(classes))]
    scored = scored_classes(classes)
    tasks = {
        task: {
            "auc": auc(p, positive, weights),
            "average_precision": average_precision(p, positive, weights),
            **_rates((predicted == number) == positive, positive, weights),
            "at_0.5": _rates((p > 0.5) == positive, positive, weights),
            "sensitivity_at_specificity": {
                f"{wanted:.2f}": sensitivity_at_specificity(p, positive, wanted, weights) for wanted in SPECIFICITIES
            },
        }
        for number, (task, p, positive) in enumerate(zip(scored, probabilities.T, members, strict=False))
    }
    recalls = [weighted_mean(correct[those], weights[:, those]) for those in members]
    return {
        "mean_auc": np.mean([each["auc"] for each in tasks.values()], axis=0),
        **tasks,
        "accuracy": weighted_mean(correct, weights),
        "balanced_accuracy": np.nanmean(recalls, axis=0),
        "calibration_error": calibration_error(probabilities, labels, weights=weights),
    }


def _rates(correct: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    those = {"accuracy": np.ones_like(positive), "sensitivity": positive, "specificity": ~positive}
    return {name: weighted_mean(correct[chosen], weights[:, chosen]) for name, chosen in those.items()}


def _combined(function: Callable[..., Any], *nested: Mapping[str, Any]) -> dict[str, Any]:
    """What the function makes of the values at the same place in dictionaries of one structure."""
    return {
        name: _combined(function, *values) if isinstance(values[0], dict) else function(*values)
        for name, *values in ((name, *(one[name] for one in nested)) for name in nested[0])
    }


def _both_sides(scores: ArrayLike, positive: ArrayLike, weights: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """The positives' scores [P] and the negatives', each ascending; then the weights [R, P] of each."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != bool or not np.isfinite(scores).all():
        raise ValueError(
            f"expected finite scores [N] and positive bool [N], got {scores.shape}, {positive.dtype} {positive.shape}"
        )
    order = np.argsort(scores)
    sides = order[positive[order]], order[~positive[order]]
    weights = np.ones((1, scores.size)) if weights is None else weights
    return *(scores[side] for side in sides), *(weights[:, side] for side in sides)


def _running_sum(weights: np.ndarray) -> np.ndarray:
    """[R, N] to [R, N + 1]: the sum of the weights before each image, and of all."""
    return np.pad(weights.cumsum(axis=1), ((0, 0), (1, 0)))


def _one_or_all(values: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    return float(values[0]) if weights is None else values


def _as_probabilities(probabilities: ArrayLike, classes: int) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.size == 0:
        raise ValueError("no images, so there is nothing to score")
    if probabilities.ndim != 2 or probabilities.shape[1] != classes:
        raise ValueError(f"probabilities must be [N, {classes}], got shape {probabilities.shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities must lie in [0, 1], without NaN, and sum to 1 for each image (softmax)")
    return probabilities


def _as_labels(labels: ArrayLike, images: int, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (images,) or labels.dtype.kind not in "iu" or not np.isin(labels, range(classes)).all():
        raise ValueError(f"labels must be integers [{images}] in 0 to {classes - 1}, got {labels.dtype} {labels.shape}")
    return labels
