"""Segmentation scores from four counts an image: true and false positives and negatives, lesion as positive.

- `official_scores`: per image at the mask's own size, then the plain mean over images (ISIC 2017 challenge,
  arXiv:1710.05006; the numbers of the `isic-challenge-scoring` package). The primary result.
- `pooled_scores`: all images' pixels together, lesion as the positive class; and beside them the mean of lesion and
  background, which is usually higher, and no match for the challenge's numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.data.isic import lesions
from utils.evaluation.statistics import RESAMPLES, Groups, bootstrap_interval, interval, resample, weighted_mean

COUNTS = ("tp", "fp", "fn", "tn")
Counts = dict[str, tuple[int, int, int, int]]  # of many images, by id, as of `confusion_counts`
METRICS = ("accuracy", "sensitivity", "specificity", "jaccard", "threshold_jaccard", "dice")
JACCARD_THRESHOLD = 0.65


def confusion_counts(prediction: ArrayLike, truth: ArrayLike) -> tuple[int, int, int, int]:
    """Counts (tp, fp, fn, tn) of one image's pixels; lesion is positive.

    prediction, truth: bool or 0 and 1, [H, W] of one size; else ValueError.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for mask in (prediction, truth):
        if mask.dtype != bool and ((mask != 0) & (mask != 1)).any():  # probabilities would all be lesion
            raise ValueError("a mask holds values other than 0 and 1")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    if prediction.shape != truth.shape:  # which would be broadcast
        raise ValueError(f"expected masks [H, W] of one size, got {prediction.shape} for a truth of {truth.shape}")
    tp = np.count_nonzero(prediction & truth)
    fp = np.count_nonzero(prediction) - tp
    fn = np.count_nonzero(truth) - tp
    return int(tp), int(fp), int(fn), int(truth.size - tp - fp - fn)


def per_image_table(counts: Counts, groups: Mapping[str, str | None] | None = None) -> pd.DataFrame:
    """One row an image: image_id, tp, fp, fn, tn, the six official metrics, and group where any image has one.

    groups: by image id, what is drawn together for intervals (`utils.data.isic.lesions`). ValueError without images.
    """
    pixels = pd.DataFrame([*counts.values()], columns=list(COUNTS))
    table = pd.concat([pd.Series([*counts], name="image_id"), pixels, image_scores(pixels)], axis="columns")
    return table.assign(group=table["image_id"].map(groups)) if any((groups or {}).values()) else table


def image_scores(counts: ArrayLike | pd.DataFrame) -> pd.DataFrame:
    """The six official metrics of every image: float64 [N], columns `METRICS`, all in [0, 1].

    counts: integers [N, 4] in the order of `COUNTS`, or a DataFrame with these columns; else ValueError.
    Nothing to find: sensitivity = 1 without positive truth, specificity = 1 without negative truth,
    jaccard = dice = 1 when both masks are empty. threshold_jaccard: jaccard where at least 0.65, else 0.
    """
    tp, fp, fn, tn = _as_counts(counts).T
    jaccard = _ratio_or_one(tp, tp + fp + fn)
    return pd.DataFrame(
        {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "sensitivity": _ratio_or_one(tp, tp + fn),
            "specificity": _ratio_or_one(tn, tn + fp),
            "jaccard": jaccard,
            "threshold_jaccard": np.where(jaccard >= JACCARD_THRESHOLD, jaccard, 0.0),
            "dice": _ratio_or_one(2 * tp, 2 * tp + fp + fn),
        },
        columns=list(METRICS),
    )


def official_scores(counts: ArrayLike | pd.DataFrame) -> dict[str, float]:
    """The plain mean over images of each official metric; counts and errors as in `image_scores`."""
    return {name: float(value) for name, value in image_scores(counts).mean().items()}


def pooled_scores(counts: ArrayLike | pd.DataFrame) -> dict[str, Any]:
    """Scores of all images' pixels together: large images weigh more. Counts as in `image_scores`.

    The six `METRICS` are of the lesion. "mean_of_background_and_lesion", for comparison with published tables:
    jaccard and dice, each the mean of the pooled lesion's and the pooled background's; threshold_jaccard, the mean of
    every image's, of lesion and of background. The latter is ours: the earlier table does not state its definition,
    and thresholding the two pooled values does not give its numbers.
    """
    counts = _as_counts(counts)
    lesion = image_scores(counts.sum(axis=0, keepdims=True)).iloc[0]
    # Seen from the background, tp and tn change places, and so do fp and fn.
    background = image_scores(counts[:, ::-1].sum(axis=0, keepdims=True)).iloc[0]
    both = (lesion + background) / 2
    per_image = np.vstack([counts, counts[:, ::-1]])
    return {
        **{name: float(lesion[name]) for name in METRICS},
        "mean_of_background_and_lesion": {
            "jaccard": float(both["jaccard"]),
            "dice": float(both["dice"]),
            "threshold_jaccard": official_scores(per_image)["threshold_jaccard"],
        },
    }


def pooled_intervals(counts: ArrayLike, resamples: int = RESAMPLES, groups: Groups = None) -> dict[str, Any]:
    """95 % bootstrap intervals (low, high) over images of `pooled_scores`, in its structure.

    counts: integers [S, N, 4] of S trainings on the same images; the intervals are of the scores' means over them.
    groups: as in `statistics.resample`.
    """
    counts = np.asarray(counts, dtype=np.int64)
    weights = resample(counts.shape[1], groups, resamples)
    drawn = []
    for one in counts:
        sides = one, one[:, ::-1]
        # Sums of pixels are whole numbers far below 2⁵³, so that the product in floats is exact.
        pooled = [image_scores((weights @ side).astype(np.int64)) for side in sides]  # [R] of lesion and of background
        thresholded = np.mean([image_scores(side)["threshold_jaccard"] for side in sides], axis=0)
        mean = (pooled[0] + pooled[1])[["jaccard", "dice"]] / 2
        drawn.append((pooled[0], mean.assign(threshold_jaccard=weighted_mean(thresholded, weights))))
    lesion, both = (
        {name: interval(np.mean([one[name] for one in tables], axis=0)) for name in tables[0]}
        for tables in zip(*drawn, strict=True)
    )
    return {**lesion, "mean_of_background_and_lesion": both}


def summarize(counts: Counts, groups: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """Official scores with 95 % bootstrap intervals over images, and pooled ones, as plain values for JSON.

    groups: as for `per_image_table`.
    """
    per_image = per_image_table(counts)
    together = lesions(per_image["image_id"], groups)
    return {
        "images": len(counts),
        "official": official_scores(per_image),
        "official_interval_95": {name: list(bootstrap_interval(per_image[name], together)) for name in METRICS},
        "pooled": pooled_scores(per_image),
    }


def _as_counts(counts: ArrayLike | pd.DataFrame) -> np.ndarray:
    counts = np.asarray(counts[list(COUNTS)] if isinstance(counts, pd.DataFrame) else counts)
    if len(counts) == 0:
        raise ValueError("no images were counted, so there is nothing to score")
    if counts.ndim != 2 or counts.shape[1] != len(COUNTS) or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be integers [N, 4] {COUNTS}, got {counts.dtype} {counts.shape}")
    counts = counts.astype(np.int64)
    if (counts < 0).any() or (counts.sum(axis=1) == 0).any():
        raise ValueError("counts must not be negative, and every image needs at least one pixel")
    return counts


def _ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.ones(len(numerator)), where=denominator > 0)
