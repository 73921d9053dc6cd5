"""Intervals, and tests between models: against slow computations, by hand, and on data without a difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tests.evaluation.test_classification_scores import by_path, draw, scikit_learn_scores
from utils.evaluation.classification import auc, calibration_error, score_intervals
from utils.evaluation.segmentation import pooled_intervals
from utils.evaluation.statistics import bootstrap_interval, delong, delong_test, holm, interval, paired_bootstrap


def draw_scores(images=80, models=2, share=0.3, signal=1.0, seed=0, decimals=None) -> tuple[np.ndarray, np.ndarray]:
    """positive [N] and scores [K, N] of models that agree in part; few decimals make ties."""
    rng = np.random.default_rng(seed)
    positive = rng.random(images) < share
    positive[:4] = [True, True, False, False]
    shared = rng.normal(size=images) + signal * positive
    scores = shared + 0.7 * rng.normal(size=(models, images))
    return positive, scores if decimals is None else scores.round(decimals)


def slow_delong(positive, scores) -> tuple[np.ndarray, np.ndarray]:
    """The structural components of DeLong et al. 1988, one pair of images at a time."""
    rows_pos, rows_neg = np.flatnonzero(positive), np.flatnonzero(~positive)
    v10, v01 = np.zeros((len(scores), len(rows_pos))), np.zeros((len(scores), len(rows_neg)))
    for k, model in enumerate(scores):
        for i, p in enumerate(rows_pos):
            for j, n in enumerate(rows_neg):
                won = 1.0 if model[p] > model[n] else 0.5 if model[p] == model[n] else 0.0
                v10[k, i] += won / len(rows_neg)
                v01[k, j] += won / len(rows_pos)
    aucs = v10.mean(axis=1)
    covariance = np.zeros((len(scores), len(scores)))
    for components in (v10, v01):
        count = components.shape[1]
        deviations = components - aucs[:, None]
        covariance += deviations @ deviations.T / (count - 1) / count
    return aucs, covariance


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([None, 1, 0]), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=15, deadline=None)
def test_delong_is_the_slow_computation(seed, models, decimals, share):
    positive, scores = draw_scores(40, models, share, seed=seed, decimals=decimals)
    aucs, covariance = delong(positive, scores)
    slow_aucs, slow_covariance = slow_delong(positive, scores)
    np.testing.assert_allclose(aucs, slow_aucs, atol=1e-12)
    np.testing.assert_allclose(covariance, slow_covariance, atol=1e-12)
    np.testing.assert_allclose(aucs, [auc(model, positive) for model in scores], atol=1e-12)
    assert covariance.shape == (models, models)


@pytest.mark.parametrize(("first", "second", "decimals"), [(1, 1, None), (1, 1, 0), (3, 2, None)])
def test_delong_p_value_by_hand(first, second, decimals):
    """Also of several trainings, whose mean AUCs are compared."""
    positive, scores = draw_scores(models=first + second, decimals=decimals, seed=3)
    aucs, s = slow_delong(positive, scores)
    weights = np.array([1 / first] * first + [-1 / second] * second)
    difference, deviation = weights @ aucs, np.sqrt(weights @ s @ weights)
    result = delong_test(positive, scores[:first], scores[first:])
    assert result.difference == pytest.approx(difference)
    assert result.p_value == pytest.approx(2 * norm.cdf(-abs(difference) / deviation))
    ends = difference - 1.959964 * deviation, difference + 1.959964 * deviation
    assert result.interval == pytest.approx(ends, abs=1e-6)


def test_delong_at_the_edges():
    positive, (a, b) = draw_scores()
    same = delong_test(positive, a, a)
    assert (same.difference, same.interval, same.p_value) == (0, (0, 0), 1)
    assert delong_test(positive, [a, b], [b, a]).p_value == 1
    opposite = delong_test(positive, positive.astype(float), -positive.astype(float))  # nothing left to chance
    assert (opposite.difference, opposite.interval, opposite.p_value) == (1, (1, 1), 0)
    for labels, message in ((np.ones(80, bool), "two negatives, got 80 and 0"), (np.arange(80) == 3, "got 1 and 79")):
        with pytest.raises(ValueError, match=message):
            delong_test(labels, a, b)


def test_intervals_are_of_drawn_images():
    """One draw after the other, as in every version: the intervals of finished runs can be made again."""
    values, generator = np.random.default_rng(1).random(31), np.random.default_rng(0)
    means = [values[generator.integers(31, size=31)].mean() for _ in range(2000)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=1e-12)


def test_images_of_one_group_are_drawn_together():
    """Three photographs of each lesion tell no more than one; every lesion by itself is drawn as without groups."""
    probabilities, labels = draw(20, 3, (0.3, 0.3, 0.4))
    counts = np.random.default_rng(0).integers(1, 99, (2, 20, 4))
    groups = [f"lesion {number}" for number in range(20)][::-1]
    a, b = probabilities.T[:2]
    for times in (1, 3):
        p, y, together = np.tile(probabilities, (times, 1)), np.tile(labels, times), groups * times
        assert bootstrap_interval(p[:, 0], together) == pytest.approx(bootstrap_interval(a), abs=1e-12)
        found, expected = paired_bootstrap(p[:, 0], p[:, 1], together), paired_bootstrap(a, b)
        assert [found.p_value, *found.interval] == pytest.approx([expected.p_value, *expected.interval], abs=1e-12)
        expected = by_path(score_intervals(probabilities, labels, 99))
        for path, ends in by_path(score_intervals(p, y, 99, groups=together)).items():
            assert ends == pytest.approx(expected[path], abs=1e-12)
        found, expected = pooled_intervals(np.tile(counts, (1, times, 1)), 99, together), pooled_intervals(counts, 99)
        assert found["dice"] == pytest.approx(expected["dice"], abs=1e-12)


def test_intervals_at_the_edges():
    assert bootstrap_interval([0, 1]) == (0, 1) and bootstrap_interval([0.25]) == (0.25, 0.25)
    assert interval([np.nan, 1, 1, np.nan]) == (1, 1)
    assert np.isnan(interval([np.nan, np.nan])).all()
    for wrong in ([0.5, np.nan], [[0.5, 0.5]], []):
        with pytest.raises(ValueError, match="finite values"):
            bootstrap_interval(wrong)


def test_paired_bootstrap_is_the_bootstrap_of_the_differences():
    a, b = np.random.default_rng(2).random((2, 60))
    result = paired_bootstrap(a, b)
    assert result.difference == pytest.approx((a - b).mean())
    assert result.interval == bootstrap_interval(a - b)


def test_paired_bootstrap_p_value_is_where_the_interval_meets_zero():
    noise, zero = np.random.default_rng(9).normal(size=50), np.zeros(50)
    noise -= noise.mean()
    low, high = bootstrap_interval(noise)
    for edge in (low, high):  # shifted so, one end of the 95 % interval is 0
        assert paired_bootstrap(noise - edge, zero).p_value == pytest.approx(0.05, abs=0.002)
        assert paired_bootstrap(noise - 1.2 * edge, zero).p_value < 0.045
        assert 0.055 < paired_bootstrap(noise - 0.8 * edge, zero).p_value < 0.3


def test_paired_bootstrap_at_the_edges():
    a = np.random.default_rng(0).random(40)
    assert paired_bootstrap(a, a).p_value == 1 and paired_bootstrap(a, a).interval == (0, 0)
    assert paired_bootstrap(a + 1, a).p_value == paired_bootstrap(a, a + 1).p_value == pytest.approx(2 / 2001)
    with pytest.raises(ValueError, match="finite values"):
        paired_bootstrap(a, np.full(40, np.nan))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1, 1])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize(
    ("images", "trainings", "shares"),
    [(40, 2, (0.3, 0.3, 0.4)), (12, 1, (0.15, 0.05, 0.8))],
)
def test_intervals_are_quantiles_of_scikit_learns_scores(images, trainings, shares):
    """Of the mean over trainings, in the same drawn images; where it is undefined the resample is left out."""
    probabilities, labels = draw(images, 3, shares, grid=20)
    each = [np.roll(probabilities, number, axis=0) for number in range(trainings)]
    generator, drawn = np.random.default_rng(0), []
    for _ in range(15):
        rows = generator.integers(images, size=images)
        scores = [scikit_learn_scores(one[rows], labels[rows]) for one in each]
        errors = [calibration_error(one[rows], labels[rows]) for one in each]
        means = {path: np.mean([one[path] for one in scores]) for path in scores[0]}
        drawn.append({**means, ("calibration_error",): np.mean(errors)})
    intervals = by_path(score_intervals(each[0] if trainings == 1 else np.stack(each), labels, resamples=15))
    assert intervals.keys() == drawn[0].keys()
    for path, found in intervals.items():
        expected = np.nanquantile([scores[path] for scores in drawn], [0.025, 0.975])
        assert found == pytest.approx(expected.tolist(), abs=1e-12), path
    left_out = np.isnan([scores["mean_auc",] for scores in drawn]).sum()
    assert left_out == 0 if images == 40 else 0 < left_out < 15
