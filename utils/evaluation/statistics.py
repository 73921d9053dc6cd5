"""Models compared on the same images, and intervals of scores that are means over several trainings.

The tests ask how far a difference could come from the choice of images. None of them knows how much a model changes
when it is trained again: that is what several seeds are for, and their spread stands beside the intervals.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from utils.evaluation.classification import SPECIFICITIES, TASKS
from utils.evaluation.segmentation import METRICS, image_scores

_TIE = 1e-12  # differences of means below this are rounding; one pair of images out of 10⁵ × 10⁵ weighs more


@dataclass(frozen=True)
class Comparison:
    """By how much the first model scores higher than the second: difference, (low, high), two-sided p value."""

    difference: float
    interval: tuple[float, float]
    p_value: float


def delong(positive: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """AUCs [K] of K models on the same images, and the covariance [K, K] of these estimates.

    positive: bool [N]; scores: [K, N] finite numbers, higher for positives. DeLong et al. 1988 (doi 10.2307/2531595)
    in the form of Sun & Xu 2014 (doi 10.1109/LSP.2014.2337313): midranks in place of all pairs, ties count half.
    ValueError for other shapes or types, NaN or infinite scores, and fewer than two positives or two negatives.
    """
    positive, scores = np.asarray(positive), np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or positive.dtype != bool or positive.shape != scores.shape[1:]:
        raise ValueError(
            f"expected positive bool [N] and scores [K, N], got {positive.dtype} {positive.shape} and {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; at least one is NaN or infinite")
    images, positives = positive.size, int(np.count_nonzero(positive))
    negatives = images - positives
    if min(positives, negatives) < 2:
        raise ValueError(f"DeLong's covariance needs two positives and two negatives, got {positives} and {negatives}")
    ranks = scipy.stats.rankdata(scores, axis=1)
    among_positives = scipy.stats.rankdata(scores[:, positive], axis=1)
    among_negatives = scipy.stats.rankdata(scores[:, ~positive], axis=1)
    negatives_below = (ranks[:, positive] - among_positives) / negatives  # [K, positives], in [0, 1]
    positives_below = (ranks[:, ~positive] - among_negatives) / positives  # [K, negatives]
    covariance = np.cov(negatives_below) / positives + np.cov(positives_below) / negatives
    return negatives_below.mean(axis=1), np.atleast_2d(covariance)


def delong_test(positive: ArrayLike, a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Comparison:
    """Whether the AUC of `a` differs from that of `b`, by DeLong's covariance and the normal distribution.

    a, b: scores [N] of a model, or [S, N] of its S trainings, whose mean AUC is then compared. p is 1 where the AUCs
    are equal. ValueErrors as in `delong`, and for a level outside (0, 1).
    """
    _check_level(level)
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"scores {a.shape} and {b.shape}: expected the same images")
    aucs, covariance = delong(positive, np.vstack([a, b]))
    difference = float(aucs[: len(a)].mean() - aucs[len(a) :].mean())
    weights = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    deviation = float(np.sqrt(max(weights @ covariance @ weights, 0.0)))
    half = float(scipy.stats.norm.ppf((1 + level) / 2)) * deviation
    z = abs(difference) / deviation if deviation else np.inf
    p_value = 1.0 if abs(difference) < _TIE else float(2 * scipy.stats.norm.sf(z))
    return Comparison(difference, (difference - half, difference + half), p_value)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Whether the mean of `a` differs from that of `b`, by resampling the images (Efron & Tibshirani 1993).

    a, b: [N] finite values, one an image, of the same images in the same order. The interval is that of
    `utils.evaluation.segmentation.bootstrap_interval` of a − b. p is the smallest 1 − level whose interval leaves out 0, never
    below 2 / (resamples + 1), and 1 where all values are equal. ValueError for other values, level or resamples.
    """
    a, b = _as_pairs(a, b)
    means = _resamples(a.size, resamples, seed) @ (a - b) / a.size
    fewer = min(np.count_nonzero(means <= _TIE), np.count_nonzero(means >= -_TIE))
    return Comparison(float((a - b).mean()), _interval(means, level), min(1.0, 2 * (fewer + 1) / (resamples + 1)))


def wilcoxon(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test of a − b; arguments as in `paired_bootstrap`.

    Images with equal values are left out, as Wilcoxon did; p is 1 where all are equal.
    """
    a, b = _as_pairs(a, b)
    return float(scipy.stats.wilcoxon(a, b).pvalue) if (a != b).any() else 1.0


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values [M] adjusted for M tests by Holm's step-down procedure (1979), in the order given.

    Those below 0.05 hold together: the chance of any false one among them is at most 0.05.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("p values must be [M] and lie in [0, 1]")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    steps = p_values[order] * np.arange(p_values.size, 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def classification_intervals(
    probabilities: ArrayLike, labels: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[tuple[str, ...], tuple[float, float]]:
    """Bootstrap intervals of scores averaged over S trainings; every resample takes the same images for all of them.

    probabilities: [S, N, 3] on the same images, columns as `utils.data.isic.CLASSES`; labels: int [N]. Keys: (task, "auc"),
    (task, "accuracy"), "sensitivity", "specificity", (task, "sensitivity_at_specificity", "0.80") …, and
    ("mean_auc",). With S = 1 they are those of
    `utils.evaluation.classification.score_intervals`; NaN where no resample has the images that a score needs.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 3 or probabilities.shape[1] != labels.size or not labels.size:
        raise ValueError(f"expected probabilities [S, N, 3] and labels [N], got {probabilities.shape}, {labels.shape}")
    weights = _resamples(labels.size, resamples, seed)  # [resamples, N]
    drawn: dict[tuple[str, ...], np.ndarray] = {("mean_auc",): np.empty(0)}  # the first key; filled below
    with np.errstate(invalid="ignore"):  # 0 / 0: a resample without such images
        for number, task in enumerate(TASKS):
            positive = labels == number
            above = sum(_shares_won(scores[positive], scores[~positive]) for scores in probabilities[..., number])
            above = above / len(probabilities)  # [positives, negatives]
            pairs = weights[:, positive].sum(axis=1) * weights[:, ~positive].sum(axis=1)
            drawn[task, "auc"] = ((weights[:, positive] @ above) * weights[:, ~positive]).sum(axis=1) / pairs
            correct = ((probabilities.argmax(axis=2) == number) == positive).mean(axis=0)
            rules = {"accuracy": np.ones_like(positive), "sensitivity": positive, "specificity": ~positive}
            for name, those in rules.items():
                drawn[task, name] = weights[:, those] @ correct[those] / weights[:, those].sum(axis=1)
            for specificity in SPECIFICITIES:
                each = [_sensitivities(weights, scores, positive, specificity) for scores in probabilities[..., number]]
                drawn[task, "sensitivity_at_specificity", f"{specificity:.2f}"] = np.mean(each, axis=0)
    drawn["mean_auc",] = np.mean([drawn[task, "auc"] for task in TASKS], axis=0)
    return {path: _interval(values, level) for path, values in drawn.items()}


def pooled_intervals(
    counts: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[tuple[str, ...], tuple[float, float]]:
    """As `classification_intervals`, of `utils.evaluation.segmentation.pooled_scores`, whose paths are the keys here.

    counts: integers [S, N, 4] of the same images, as `utils.evaluation.segmentation.COUNTS`.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 3 or counts.shape[2] != 4 or 0 in counts.shape:
        raise ValueError(f"expected counts [S, N, 4], got {counts.shape}")
    weights = _resamples(counts.shape[1], resamples, seed)
    drawn = []
    for one in counts:
        # Sums of pixels are whole numbers far below 2⁵³, so that the product in floats is exact.
        lesion, background = ((weights @ side).astype(np.int64) for side in (one, one[:, ::-1]))
        lesion, background = image_scores(lesion), image_scores(background)
        both = (lesion + background)[["jaccard", "dice"]] / 2
        sides = [image_scores(side)["threshold_jaccard"].to_numpy() for side in (one, one[:, ::-1])]
        both["threshold_jaccard"] = weights @ np.mean(sides, axis=0) / counts.shape[1]
        paths = {(name,): lesion[name] for name in METRICS}
        drawn.append(paths | {("mean_of_background_and_lesion", name): both[name] for name in both})
    return {path: _interval(np.mean([one[path] for one in drawn], axis=0), level) for path in drawn[0]}


def _resamples(images: int, resamples: int, seed: int) -> np.ndarray:
    """float64 [resamples, images]: how often each resample has each image; the draws of `bootstrap_interval`."""
    if resamples < 1:
        raise ValueError(f"resamples must be positive, got {resamples}")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(images, size=images) for _ in range(resamples))
    return np.array([np.bincount(rows, minlength=images) for rows in draws], dtype=np.float64)


def _shares_won(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """[P, N]: 1 where the positive scores higher, 1/2 where both score the same."""
    return (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)


def _sensitivities(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray, specificity: float) -> np.ndarray:
    """`utils.evaluation.classification.sensitivity_at_specificity` of every resample [R]; scores [N], positive bool [N]."""
    order = np.argsort(scores[~positive])
    negatives, counts = scores[~positive][order], weights[:, ~positive][:, order].cumsum(axis=1)  # [R, negatives]
    if not negatives.size:
        return np.full(len(weights), np.nan)
    # As there, the fewest negatives that must lie below the threshold, found without rounding.
    needed = {n: np.argmax(np.arange(n + 1) / max(n, 1) >= specificity) for n in np.unique(counts[:, -1])}
    highest = (counts >= np.array([needed[n] for n in counts[:, -1]])[:, None]).argmax(axis=1)
    found = scores[positive] > negatives[highest][:, None]  # [R, positives]
    sensitivities = (weights[:, positive] * found).sum(axis=1) / weights[:, positive].sum(axis=1)
    return np.where(counts[:, -1] > 0, sensitivities, np.nan)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    _check_level(level)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if values.size else (np.nan, np.nan)
    return float(low), float(high)


def _as_pairs(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"expected values [N] of the same images, N ≥ 1, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values must be finite; at least one is NaN or infinite")
    return a, b


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
