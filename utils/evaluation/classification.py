"""Classification scores from probabilities: melanoma and seborrheic keratosis, each against the other two classes.

- Free of a threshold: AUC of each task and their mean (what the ISIC 2017 challenge ranks by, arXiv:1710.05006),
  average precision, sensitivity at given specificities.
- By the most probable of the three classes (the primary ones): the tasks' "accuracy", "sensitivity" and
  "specificity", the confusion matrix, accuracy, balanced accuracy, calibration error. Where classes share the
  highest probability, the first of `CLASSES` is taken; the balanced accuracy of `isic-challenge-scoring` counts
  such an image as wrong.
- "at_0.5": accuracy, sensitivity and specificity at p > 0.5, the challenge's threshold.

A value without the images it needs is undefined: NaN from the functions of one value, None in the dictionaries.
Elsewhere a number stands in that would pass for a result: sensitivity without positives is 1 in
`isic-challenge-scoring` (as specificity without negatives) and 0 in scikit-learn, as is its average precision.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.data.isic import CLASSES

TASKS = CLASSES[:2]
SPECIFICITIES = (0.80, 0.90, 0.95)


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher.

    A tie counts half (Mann–Whitney). scores: [N] finite numbers; positive: bool [N]. NaN without positives or
    without negatives. ValueError for other shapes or types, no images, NaN or infinite scores.
    """
    positives, negatives = _both_sides(scores, positive)
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return _mean(below + not_above) / (2 * negatives.size) if negatives.size else np.nan


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """The precision at each positive's own score, averaged over the positives (scikit-learn's definition).

    Precision at a score: the share of positives among the images that score at least as high. Arguments and
    errors as in `auc`. NaN without positives, 1 without negatives.
    """
    positives, negatives = _both_sides(scores, positive)
    true = positives.size - np.searchsorted(positives, positives, side="left")
    false = negatives.size - np.searchsorted(negatives, positives, side="left")
    return _mean(true / (true + false))


def sensitivity_at_specificity(scores: ArrayLike, positive: ArrayLike, specificity: float) -> float:
    """The highest sensitivity of any threshold (positive: score ≥ threshold) with at least this specificity.

    specificity: in [0, 1]. No interpolation between thresholds. Other arguments, NaN and errors as in `auc`.
    """
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity must lie in [0, 1], got {specificity}")
    positives, negatives = _both_sides(scores, positive)
    if not negatives.size:
        return np.nan
    # The fewest negatives that must lie below the threshold; products as specificity · N miss exact ratios.
    needed = np.argmax(np.arange(negatives.size + 1) / negatives.size >= specificity)
    return _mean(positives > (negatives[needed - 1] if needed else -np.inf))


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error of the most probable class, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    |share correct − mean confidence| in each of `bins` equal parts ((m − 1)/bins, m/bins] of [0, 1], averaged
    with the number of images as weights. It depends on `bins`, and few images raise it.
    probabilities: [N, C], C ≥ 2; labels: integers [N] in [0, C). ValueErrors as in `classification_scores`.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probabilities = _as_probabilities(probabilities)
    labels = _as_labels(labels, *probabilities.shape)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    inner_edges = np.arange(1, bins) / bins
    gaps = np.bincount(np.searchsorted(inner_edges, confidence, side="left"), weights=correct - confidence)
    return float(np.abs(gaps).sum() / labels.size)


def classification_scores(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Every score of the module's docstring, as plain numbers that `json.dumps` takes; None where undefined.

    probabilities: [N, 3], columns as `CLASSES`; labels: integers [N], indices into `CLASSES`.

        {"mean_auc",
         "melanoma": {"auc", "average_precision", "accuracy", "sensitivity", "specificity",
                      "at_0.5": {"accuracy", "sensitivity", "specificity"},
                      "sensitivity_at_specificity": {"0.80", "0.90", "0.95"}},
         "seborrheic_keratosis": the same,
         "accuracy", "balanced_accuracy", "calibration_error",
         "confusion_matrix": [[int] * 3] * 3, rows truth, columns prediction}

    mean_auc is of the two tasks; balanced_accuracy is the mean sensitivity of the classes that have images.
    ValueError for no images, other shapes, probabilities that are not finite, outside [0, 1] or whose rows miss
    the sum 1 by more than 1e-3, labels that are no integers or no index of a class.
    """
    probabilities = _as_probabilities(probabilities, len(CLASSES))
    labels = _as_labels(labels, *probabilities.shape)
    scores = _scores(probabilities, labels)
    matrix = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    nested = _nested({path: None if np.isnan(value) else float(value) for path, value in scores.items()})
    return {**nested, "confusion_matrix": matrix.tolist()}


def score_intervals(
    probabilities: ArrayLike, labels: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Percentile bootstrap intervals over images (Efron 1979): [low, high] for each of `classification_scores`.

    Same structure, without the confusion matrix. One resample is N images drawn with replacement, for all scores
    at once; where it leaves a score undefined (no image of a class), that score does without it, and is
    [None, None] when no resample is left. The same arguments give the same intervals.
    The calibration error is larger in a resample than in the sample, on average, so that its interval leans
    upwards and can miss the value; it tells the spread only.
    Arguments and errors as there; ValueError also for a level outside (0, 1) or no resamples.
    """
    probabilities = _as_probabilities(probabilities, len(CLASSES))
    labels = _as_labels(labels, *probabilities.shape)
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie in (0, 1) and resamples be positive, got {level} and {resamples}")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(labels.size, size=labels.size) for _ in range(resamples))
    drawn = [_scores(probabilities[rows], labels[rows]) for rows in draws]
    ends = (1 - level) / 2, (1 + level) / 2
    intervals: dict[tuple[str, ...], list] = {}
    for path in drawn[0]:
        values = [scores[path] for scores in drawn if not np.isnan(scores[path])]
        intervals[path] = np.quantile(values, ends).tolist() if values else [None, None]
    return _nested(intervals)


def summarize(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Scores with 95 % bootstrap intervals over images, as plain values for JSON."""
    scores = classification_scores(probabilities, labels)
    return {"images": len(labels), **scores, "interval_95": score_intervals(probabilities, labels)}


def predictions_table(image_ids: Sequence[Hashable], probabilities: ArrayLike) -> pd.DataFrame:
    """One row an image: image_id, then a float64 column for each of `CLASSES`; probabilities [N, 3].

    `to_csv(path, index=False)` caches it, `pd.read_csv(path)` reads it back (pandas 2 can miss the last digit).
    ValueError for an id that comes twice, another number of ids than rows, or probabilities that
    `classification_scores` refuses.
    """
    probabilities = _as_probabilities(probabilities, len(CLASSES))
    ids = pd.Series(list(image_ids), name="image_id")
    if len(ids) != len(probabilities):
        raise ValueError(f"{len(ids)} image ids for {len(probabilities)} rows of probabilities")
    if ids.duplicated().any():
        raise ValueError(f"{ids[ids.duplicated()].iloc[0]} is there twice; every image counts once")
    return pd.concat([ids, pd.DataFrame(probabilities, columns=list(CLASSES))], axis="columns")


def official_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """A `predictions_table` as `isic-challenge-scoring classification TRUTH.csv PREDICTION.csv` reads it.

    The command wants a column "image", exactly the truth's other columns, as floats in [0, 1], and exactly its
    images, in any order. Write it with `to_csv(path, index=False)`. Further columns are dropped. KeyError for a
    missing one, ValueErrors as in `predictions_table`.
    """
    return predictions_table(table["image_id"], table[list(CLASSES)]).rename(columns={"image_id": "image"})


def official_truth(labels: Mapping[str, int]) -> pd.DataFrame:
    """Labels by image id (`utils.data.isic.read_labels`) as the TRUTH.csv of the official command: 0.0 and 1.0.

    All three classes, nevus too: the command's balanced accuracy and its means are over the columns it finds.
    The challenge's own file, with "image_id" and without nevus, is refused. ValueErrors as in
    `classification_scores`.
    """
    classes = _as_labels(list(labels.values()), len(labels), len(CLASSES))
    return predictions_table(list(labels), np.eye(len(CLASSES))[classes]).rename(columns={"image_id": "image"})


def _scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[tuple[str, ...], float]:
    """Every scalar of `classification_scores` by its path in there; NaN where undefined."""
    predicted = probabilities.argmax(axis=1)
    scores = {("mean_auc",): np.nan}  # the first key; filled below
    for number, task in enumerate(TASKS):
        p, positive = probabilities[:, number], labels == number
        scores[task, "auc"] = auc(p, positive)
        scores[task, "average_precision"] = average_precision(p, positive)
        for rule, said_positive in (((task,), predicted == number), ((task, "at_0.5"), p > 0.5)):
            correct = said_positive == positive
            scores[(*rule, "accuracy")] = _mean(correct)
            scores[(*rule, "sensitivity")] = _mean(correct[positive])
            scores[(*rule, "specificity")] = _mean(correct[~positive])
        for specificity in SPECIFICITIES:
            path = (task, "sensitivity_at_specificity", f"{specificity:.2f}")
            scores[path] = sensitivity_at_specificity(p, positive, specificity)
    scores["mean_auc",] = np.mean([scores[task, "auc"] for task in TASKS])
    correct = predicted == labels
    recalls = [_mean(correct[labels == number]) for number in range(len(CLASSES))]
    scores["accuracy",] = _mean(correct)
    scores["balanced_accuracy",] = np.nanmean(recalls)
    scores["calibration_error",] = calibration_error(probabilities, labels)
    return scores


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _nested(by_path: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for (*parents, name), value in by_path.items():
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return nested


def _both_sides(scores: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The positives' scores and the negatives', each ascending."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape or positive.dtype != bool:
        raise ValueError(
            f"expected scores [N] and positive bool [N], got {scores.shape} and {positive.dtype} {positive.shape}"
        )
    if scores.size == 0:
        raise ValueError("no images, so there is nothing to score")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; at least one is NaN or infinite")
    return np.sort(scores[positive]), np.sort(scores[~positive])


def _as_probabilities(probabilities: ArrayLike, classes: int | None = None) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.size == 0:
        raise ValueError("no images, so there is nothing to score")
    if probabilities.ndim != 2 or probabilities.shape[1] != (classes or max(2, probabilities.shape[1])):
        raise ValueError(f"probabilities must be [N, {classes or 'C'}], got shape {probabilities.shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]; at least one is NaN or outside")
    if np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities of each image must sum to 1 (softmax, not logits or sigmoids)")
    return probabilities


def _as_labels(labels: ArrayLike, images: int, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [{images}], got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels
