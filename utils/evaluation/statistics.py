"""How far scores could change with the choice of images: bootstrap intervals, and paired tests between models.

Every interval of a score is made here, of scores per class by `classification.score_intervals`: 2,000 resamples of
the images (more where many models are compared), as many with replacement, and the middle 95 % of what a score is in
them (Efron 1979). Images of one group (a lesion, a patient) are drawn together: they are no independent witnesses. The
draws depend on the number of images or groups alone, so that all models are judged by the same ones. None of it knows
how much a model changes when it is trained again: that is what several seeds are for, and their spread stands beside
the intervals.
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
_TIE = 1e-12  # differences below this are rounding; one pair of images out of 10⁵ × 10⁵ weighs more


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


def paired_bootstrap(a: tuple[float, np.ndarray], b: tuple[float, np.ndarray]) -> Comparison:
    """Whether one model's score differs from another's, by resampling the images (Efron & Tibshirani 1993).

    a, b: of each model its score, and that score's values [R] in the same resamples; NaN, where one is undefined, is
    left out. p is the smallest 1 − level whose interval leaves out 0, never below 2 / (R + 1), and 1 where all values
    are equal.
    """
    drawn = a[1] - b[1]
    drawn = drawn[~np.isnan(drawn)]
    fewer = min(np.count_nonzero(drawn <= _TIE), np.count_nonzero(drawn >= -_TIE))
    return Comparison(float(a[0] - b[0]), interval(drawn), min(1.0, 2 * (fewer + 1) / (len(drawn) + 1)))


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
