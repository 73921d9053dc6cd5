"""Intervals, and tests between models: against slow computations, by hand, and on data without a difference."""

import numpy as np
import pytest

from tests.evaluation.test_classification_scores import by_path, draw, scikit_learn_scores
from utils.evaluation.classification import calibration_error, score_intervals
from utils.evaluation.segmentation import pooled_intervals
from utils.evaluation.statistics import bootstrap_interval, holm, interval, paired_bootstrap, resample, weighted_mean


def scored(values, groups=None) -> tuple[float, np.ndarray]:
    """The mean of the values, and in the resamples, as `paired_bootstrap` takes them."""
    return np.mean(values), weighted_mean(values, resample(len(values), groups))


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
        found = paired_bootstrap(scored(p[:, 0], together), scored(p[:, 1], together))
        expected = paired_bootstrap(scored(a), scored(b))
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
    result = paired_bootstrap(scored(a), scored(b))
    assert result.difference == pytest.approx((a - b).mean())
    assert result.interval == pytest.approx(bootstrap_interval(a - b), abs=1e-12)


def test_paired_bootstrap_p_value_is_where_the_interval_meets_zero():
    noise, zero = np.random.default_rng(9).normal(size=50), np.zeros(50)
    noise -= noise.mean()
    low, high = bootstrap_interval(noise)

    def p_value(shift: float) -> float:
        return paired_bootstrap(scored(noise - shift), scored(zero)).p_value

    for edge in (low, high):  # shifted so, one end of the 95 % interval is 0
        assert p_value(edge) == pytest.approx(0.05, abs=0.002)
        assert p_value(1.2 * edge) < 0.045 and 0.055 < p_value(0.8 * edge) < 0.3


def test_paired_bootstrap_at_the_edges():
    a = np.random.default_rng(0).random(40)
    same, more = paired_bootstrap(scored(a), scored(a)), scored(a + 1)
    assert same.p_value == 1 and same.interval == (0, 0)
    assert paired_bootstrap(more, scored(a)).p_value == paired_bootstrap(scored(a), more).p_value == 2 / 2001
    nowhere = paired_bootstrap((0.5, np.array([np.nan])), (0.25, np.array([0.25])))
    assert (nowhere.difference, nowhere.p_value) == (0.25, 1) and np.isnan(nowhere.interval).all()


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
