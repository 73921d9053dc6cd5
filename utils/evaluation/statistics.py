"""How far scores could change with the choice of images: bootstrap intervals, and paired tests between models.

Every interval of a score is made here, of scores per class by `classification.score_intervals`: 2,000 resamples of
the images, as many with replacement, and the middle 95 % of what a score is in them (Efron 1979). Images of one group
(a lesion, a patient) are drawn together: they are no independent witnesses. The draws depend on the number of images
or groups alone, so that all models are judged by the same ones. None of it knows how much a model changes when it is
trained again: that is what several seeds are for, and their spread stands beside the intervals.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

RESAMPLES = 2000
Groups = Sequence[Hashable] | None  # of each image; None: each by itself
_MIDDLE = (0.025, 0.975)
_TIE = 1e-12  # differences of means below this are rounding; one pair of images out of 10⁵ × 10⁵ weighs more


@dataclass(frozen=True)
class Comparison:
    """By how much the first model scores higher than the second: difference, its 95 % interval, two-sided p value."""

    difference: float
    interval: tuple[float, float]
    p_value: float


def resample(images: int, groups: Groups = None, resamples: int = RESAMPLES) -> np.ndarray:
    """float64 [R, N], not to be written to: how often each resample has each of N images.

    Of G groups, G are drawn with replacement, each with all its images. Groups of one image each give the same numbers
    as none.
    """
    if groups is None:
        return _draws(images, resamples)
    number, names = pd.factorize(np.asarray(groups, dtype=object))  # in the order of their first images
    return _draws(images, resamples) if len(names) == images else _draws(len(names), resamples)[:, number]


@lru_cache(maxsize=2)
def _draws(units: int, resamples: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    draws = (generator.integers(units, size=units) for _ in range(resamples))
    weights = np.array([np.bincount(rows, minlength=units) for rows in draws], dtype=np.float64)
    weights.flags.writeable = False
    return weights


def weighted_mean(values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Means [R] of values [N], or [R, N], with each row of weights [R, N]; NaN where no image has weight."""
    total = weights.sum(axis=1)
    # A product and a sum, whose rounding does not hang on the number of threads as a matrix product's does.
    return np.divide((weights * values).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def interval(drawn: ArrayLike) -> tuple[float, float]:
    """(low, high): the middle 95 % of a score's values in the resamples [R], NaN (undefined there) left out.

    (NaN, NaN) where no resample defines it.
    """
    drawn = np.asarray(drawn)
    low, high = np.nanquantile(drawn, _MIDDLE) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_interval(values: ArrayLike, groups: Groups = None) -> tuple[float, float]:
    """The interval of the mean over images of finite values [N], else ValueError; groups as in `resample`."""
    values = _as_values(values)
    return interval(weighted_mean(values, resample(values.size, groups)))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, groups: Groups = None) -> Comparison:
    """Whether the mean of `a` differs from that of `b`, by resampling the images (Efron & Tibshirani 1993).

    a, b: [N] finite values of the same images in the same order. p is the smallest 1 − level whose interval leaves out
    0, never below 2 / (RESAMPLES + 1), and 1 where all values are equal.
    """
    difference = _as_values(a) - _as_values(b)
    means = weighted_mean(difference, resample(difference.size, groups))
    fewer = min(np.count_nonzero(means <= _TIE), np.count_nonzero(means >= -_TIE))
    return Comparison(float(difference.mean()), interval(means), min(1.0, 2 * (fewer + 1) / (RESAMPLES + 1)))


def delong(positive: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """AUCs [K] of K models on the same images, and the covariance [K, K] of these estimates.

    positive: bool [N]; scores: [K, N] finite numbers, higher for positives. DeLong et al. 1988 (doi 10.2307/2531595)
    in the form of Sun & Xu 2014 (doi 10.1109/LSP.2014.2337313): midranks in place of all pairs, ties count half.
    ValueError for fewer than two positives or two negatives.
    """
    from scipy.stats import rankdata

    positive, scores = np.asarray(positive), np.asarray(scores, dtype=np.float64)
    positives, negatives = np.count_nonzero(positive), np.count_nonzero(~positive)
    if min(positives, negatives) < 2:
        raise ValueError(f"DeLong's covariance needs two positives and two negatives, got {positives} and {negatives}")
    ranks = rankdata(scores, axis=1)
    negatives_below = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / negatives  # [K, positives]
    positives_below = (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / positives  # [K, negatives]
    covariance = np.cov(negatives_below) / positives + np.cov(positives_below) / negatives
    return negatives_below.mean(axis=1), np.atleast_2d(covariance)


def delong_test(positive: ArrayLike, a: ArrayLike, b: ArrayLike) -> Comparison:
    """Whether the AUC of `a` differs from that of `b`, by DeLong's covariance and the normal distribution.

    a, b: scores [N] of a model, or [S, N] of its S trainings, whose mean AUC is then compared. p is 1 where the AUCs
    are equal. ValueErrors as in `delong`.
    """
    from scipy.stats import norm

    a, b = np.atleast_2d(a), np.atleast_2d(b)
    aucs, covariance = delong(positive, np.vstack([a, b]))
    difference = float(aucs[: len(a)].mean() - aucs[len(a) :].mean())
    weights = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    deviation = float(np.sqrt(max(weights @ covariance @ weights, 0.0)))
    half = float(norm.ppf(_MIDDLE[1])) * deviation
    z = abs(difference) / deviation if deviation else np.inf
    p_value = 1.0 if abs(difference) < _TIE else float(2 * norm.sf(z))
    return Comparison(difference, (difference - half, difference + half), p_value)


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values [M] adjusted for M tests by Holm's step-down procedure (1979), in the order given.

    Those below 0.05 hold together: the chance of any false one among them is at most 0.05.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    steps = p_values[order] * np.arange(p_values.size, 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def _as_values(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [N] of at least one image, got shape {values.shape}, or NaN in it")
    return values
