"""Tests between models: against slow and independent computations, by hand, and on drawn data without a difference."""

from functools import reduce
from operator import getitem

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from utils.data.isic import CLASSES
from utils.evaluation.classification import TASKS, auc, classification_scores, score_intervals
from utils.evaluation.segmentation import bootstrap_interval, pooled_scores
from utils.evaluation.statistics import (
    classification_intervals,
    delong,
    delong_test,
    holm,
    paired_bootstrap,
    pooled_intervals,
    wilcoxon,
)


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


# --- DeLong ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([None, 1, 0]), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_delong_is_the_slow_computation(seed, models, decimals, share):
    positive, scores = draw_scores(40, models, share, seed=seed, decimals=decimals)
    aucs, covariance = delong(positive, scores)
    slow_aucs, slow_covariance = slow_delong(positive, scores)
    np.testing.assert_allclose(aucs, slow_aucs, atol=1e-12)
    np.testing.assert_allclose(covariance, slow_covariance, atol=1e-12)
    np.testing.assert_allclose(aucs, [auc(model, positive) for model in scores], atol=1e-12)
    assert covariance.shape == (models, models)


@pytest.mark.parametrize("decimals", [None, 0])
def test_delong_p_value_by_hand(decimals):
    positive, scores = draw_scores(decimals=decimals, seed=3)
    aucs, s = slow_delong(positive, scores)
    deviation = np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    result = delong_test(positive, *scores)
    assert result.difference == pytest.approx(aucs[0] - aucs[1])
    assert result.p_value == pytest.approx(2 * norm.cdf(-abs(aucs[0] - aucs[1]) / deviation))
    assert result.interval == pytest.approx(
        (result.difference - 1.959964 * deviation, result.difference + 1.959964 * deviation), abs=1e-6
    )
    wider = delong_test(positive, *scores, level=0.99).interval
    assert wider[0] < result.interval[0] and wider[1] > result.interval[1]


def test_delong_deviation_is_near_the_bootstrap():
    positive, scores = draw_scores(300, seed=1)
    _, s = delong(positive, scores)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        rows = rng.integers(300, size=300)
        drawn.append([auc(model[rows], positive[rows]) for model in scores])
    np.testing.assert_allclose(np.cov(np.transpose(drawn)), s, rtol=0.25)


def test_delong_sees_only_the_order_of_scores():
    positive, (a, b) = draw_scores(seed=5)
    result = delong_test(positive, a, b)
    assert delong_test(positive, np.exp(a), 3 * b - 7) == result
    order = np.random.default_rng(0).permutation(len(a))
    shuffled = delong_test(positive[order], a[order], b[order])
    assert (shuffled.difference, shuffled.p_value) == pytest.approx((result.difference, result.p_value))
    swapped = delong_test(positive, b, a)
    assert swapped.difference == -result.difference and swapped.p_value == pytest.approx(result.p_value)
    assert swapped.interval == pytest.approx((-result.interval[1], -result.interval[0]))
    mirrored = delong_test(~positive, -a, -b)
    assert (mirrored.difference, mirrored.p_value) == pytest.approx((result.difference, result.p_value))


def test_several_trainings_compare_their_mean_auc():
    positive, scores = draw_scores(models=5, seed=8)
    aucs, s = slow_delong(positive, scores)
    weights = np.array([1 / 3, 1 / 3, 1 / 3, -1 / 2, -1 / 2])
    result = delong_test(positive, scores[:3], scores[3:])
    assert result.difference == pytest.approx(aucs[:3].mean() - aucs[3:].mean())
    assert result.p_value == pytest.approx(2 * norm.cdf(-abs(weights @ aucs) / np.sqrt(weights @ s @ weights)))
    same = delong_test(positive, scores[:3], scores[[2, 0, 1]])
    assert same.p_value == 1 and same.difference == pytest.approx(0, abs=1e-12)


def test_delong_at_the_edges():
    positive, (a, b) = draw_scores()
    assert delong_test(positive, a, a) == delong_test(positive, a, np.exp(a))
    same = delong_test(positive, a, a)
    assert (same.difference, same.interval, same.p_value) == (0, (0, 0), 1)
    opposite = delong_test(positive, positive.astype(float), -positive.astype(float))  # nothing left to chance
    assert (opposite.difference, opposite.interval, opposite.p_value) == (1, (1, 1), 0)
    with pytest.raises(ValueError, match="two positives and two negatives, got 0 and 80"):
        delong(np.zeros(80, bool), a[None])
    with pytest.raises(ValueError, match="got 80 and 0"):
        delong(np.ones(80, bool), a[None])
    with pytest.raises(ValueError, match="got 1 and 79"):
        delong(np.arange(80) == 3, a[None])
    with pytest.raises(ValueError, match="finite"):
        delong_test(positive, a, np.full(80, np.nan))
    with pytest.raises(ValueError, match="expected the same images"):
        delong_test(positive, a, b[1:])
    with pytest.raises(ValueError, match="expected positive bool"):
        delong(positive.astype(int), a[None])
    with pytest.raises(ValueError, match="expected positive bool"):
        delong(positive, a)
    with pytest.raises(ValueError, match="level"):
        delong_test(positive, a, b, level=1)


# --- bootstrap, Wilcoxon, Holm -----------------------------------------------------------------------------------


def test_paired_bootstrap_is_the_bootstrap_of_the_differences():
    rng = np.random.default_rng(2)
    a, b = rng.random(60), rng.random(60)
    result = paired_bootstrap(a, b, resamples=500, seed=4)
    assert result.difference == pytest.approx((a - b).mean())
    assert result.interval == pytest.approx(bootstrap_interval(a - b, resamples=500, seed=4))
    assert paired_bootstrap(a, b, level=0.5).interval == pytest.approx(bootstrap_interval(a - b, level=0.5))
    assert paired_bootstrap(a, b, seed=1).interval != paired_bootstrap(a, b, seed=2).interval
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a + 0.25, b + 0.25).interval == pytest.approx(paired_bootstrap(a, b).interval)


def test_paired_bootstrap_p_value_is_where_the_interval_meets_zero():
    rng = np.random.default_rng(9)
    noise, zero = rng.normal(size=50), np.zeros(50)
    noise -= noise.mean()
    for shift in (-0.35, -0.2, -0.05, 0.1, 0.25, 0.4):
        p_value = paired_bootstrap(noise + shift, zero).p_value
        wide = paired_bootstrap(noise + shift, zero, level=1 - p_value + 0.004).interval
        narrow = paired_bootstrap(noise + shift, zero, level=1 - p_value - 0.004).interval
        assert 0.004 < p_value < 0.9
        assert wide[0] <= 0 <= wide[1] and not narrow[0] <= 0 <= narrow[1]


def test_paired_bootstrap_and_wilcoxon_at_the_edges():
    a = np.random.default_rng(0).random(40)
    assert paired_bootstrap(a, a).p_value == 1 and paired_bootstrap(a, a).interval == (0, 0)
    assert paired_bootstrap(a + 1, a, resamples=999).p_value == pytest.approx(2 / 1000)
    assert paired_bootstrap(a, a + 1, resamples=999).p_value == pytest.approx(2 / 1000)
    assert wilcoxon(a, a) == 1
    assert wilcoxon(a + 1, a) < 1e-6
    assert wilcoxon([0.5], [0.5]) == 1
    for test in (paired_bootstrap, wilcoxon):
        with pytest.raises(ValueError, match="same images"):
            test(a, a[1:])
        with pytest.raises(ValueError, match="same images"):
            test([], [])
        with pytest.raises(ValueError, match="finite"):
            test(a, np.full(40, np.nan))
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap(a, a, level=0)
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap(a, a, resamples=0)


def test_wilcoxon_by_hand():
    """Differences 1, 2, 3, 4, −5 (and two zeros): W⁻ = 5; of the 32 signs, 10 give a sum of 5 or less on one side."""
    differences = np.array([1, 2, 0, 3, 4, -5, 0.0])
    assert wilcoxon(differences, np.zeros(7)) == pytest.approx(20 / 32)
    assert wilcoxon(np.zeros(7), differences) == pytest.approx(20 / 32)
    assert wilcoxon(differences[differences != 0], np.zeros(5)) == pytest.approx(20 / 32)


def test_wilcoxon_leaves_out_ties_of_many_images():
    rng = np.random.default_rng(1)
    a, b = rng.random(200), rng.random(200)
    b[:80] = a[:80]
    assert wilcoxon(a, b) == pytest.approx(wilcoxon(a[80:], b[80:]))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.5]), [1, 1])
    np.testing.assert_allclose(holm([0.02, 0.02]), [0.04, 0.04])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)
    for wrong in ([-0.1], [1.1], [np.nan], [[0.1]]):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            holm(wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values):
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all() and (
        adjusted <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-12
    ).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_false_alarms_are_about_as_many_as_promised():
    """1,000 pairs of equally good models: 5 % give p < 0.05 (binomial deviation 0.7 %; the bootstrap gives more)."""
    rng = np.random.default_rng(7)
    by_delong, by_bootstrap, by_wilcoxon = [], [], []
    for _ in range(1000):
        positive = np.arange(100) < 40
        shared = rng.normal(size=100) + positive
        a, b = shared + rng.normal(size=(2, 100))
        by_delong.append(delong_test(positive, a, b).p_value)
        by_bootstrap.append(paired_bootstrap(a, b, resamples=200, seed=int(rng.integers(1 << 30))).p_value)
        by_wilcoxon.append(wilcoxon(a, b))
    for p_values in (by_delong, by_bootstrap, by_wilcoxon):
        assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.075
        assert 0.43 < np.mean(np.array(p_values) < 0.5) < 0.57


# --- intervals over several trainings ---------------------------------------------------------------------------


def draw_probabilities(seeds=3, images=50, seed=0, grid=None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=(0.2, 0.2, 0.6))
    logits = rng.normal(size=(seeds, images, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    if grid:
        probabilities = np.array([[rng.multinomial(grid, row) for row in one] for one in probabilities]) / grid
    return probabilities, labels


@pytest.mark.parametrize("grid", [None, 4])
def test_one_training_has_the_intervals_of_its_scores(grid):
    probabilities, labels = draw_probabilities(1, grid=grid)
    stored = score_intervals(probabilities[0], labels, resamples=300)
    intervals = classification_intervals(probabilities, labels, resamples=300)
    assert intervals["mean_auc",] == pytest.approx(stored["mean_auc"], abs=1e-12)
    for task in TASKS:
        for name in ("auc", "accuracy", "sensitivity", "specificity"):
            assert intervals[task, name] == pytest.approx(stored[task][name], abs=1e-12)
        for specificity, interval in stored[task]["sensitivity_at_specificity"].items():
            assert intervals[task, "sensitivity_at_specificity", specificity] == pytest.approx(interval, abs=1e-12)
    assert len(intervals) == 1 + 2 * (4 + 3)


@pytest.mark.parametrize("grid", [None, 4])
def test_classification_intervals_are_of_the_mean_over_trainings(grid):
    probabilities, labels = draw_probabilities(3, grid=grid, seed=4)
    rng, drawn = np.random.default_rng(6), []
    for _ in range(100):
        rows = rng.integers(50, size=50)
        drawn.append([classification_scores(one[rows], labels[rows]) for one in probabilities])
    intervals = classification_intervals(probabilities, labels, resamples=100, seed=6, level=0.8)
    for path, interval in intervals.items():
        means = [np.mean([reduce(getitem, path, one) for one in each]) for each in drawn]
        assert interval == pytest.approx(np.quantile(means, (0.1, 0.9)), abs=1e-12)


def test_a_class_without_images_has_no_interval():
    probabilities, labels = draw_probabilities()
    labels[labels == CLASSES.index("melanoma")] = CLASSES.index("nevus")
    intervals = classification_intervals(probabilities, labels, resamples=50)
    assert np.isnan(intervals["melanoma", "auc"]).all() and np.isnan(intervals["mean_auc",]).all()
    assert np.isfinite(intervals["seborrheic_keratosis", "auc"]).all()


def test_pooled_intervals_are_of_the_mean_over_trainings():
    counts = np.random.default_rng(3).integers(0, 1000, (3, 20, 4))
    counts[:, ::4, :2] = 0  # images without positives in the prediction
    rng, drawn = np.random.default_rng(6), []
    for _ in range(60):
        rows = rng.integers(20, size=20)
        drawn.append([pooled_scores(one[rows]) for one in counts])
    intervals = pooled_intervals(counts, resamples=60, seed=6, level=0.8)
    assert len(intervals) == 6 + 3
    for (*parents, name), interval in intervals.items():
        means = [np.mean([(one[parents[0]] if parents else one)[name] for one in each]) for each in drawn]
        assert interval == pytest.approx(np.quantile(means, (0.1, 0.9)), abs=1e-12)


def test_intervals_refuse_other_shapes():
    probabilities, labels = draw_probabilities()
    with pytest.raises(ValueError, match="expected probabilities"):
        classification_intervals(probabilities[0], labels)
    with pytest.raises(ValueError, match="expected probabilities"):
        classification_intervals(probabilities, labels[1:])
    with pytest.raises(ValueError, match="expected counts"):
        pooled_intervals(np.ones((5, 4), int))
