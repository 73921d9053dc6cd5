"""The segmentation scores by hand; test_official_scorer.py holds them against the challenge's."""

import numpy as np
import pandas as pd
import pytest

from utils.evaluation.segmentation import (
    COUNTS,
    METRICS,
    confusion_counts,
    image_scores,
    official_scores,
    per_image_table,
    pooled_intervals,
    pooled_scores,
)

BOTH = "mean_of_background_and_lesion"


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ([[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 1]], (2, 1, 1, 2)),
        ([[0, 0]], [[0, 0]], (0, 0, 0, 2)),
        ([[1, 1]], [[1, 1]], (2, 0, 0, 0)),
        ([[1, 1]], [[0, 0]], (0, 2, 0, 0)),
        ([[0, 0]], [[1, 1]], (0, 0, 2, 0)),
    ],
)
def test_counts_of_small_masks(prediction, truth, expected):
    for dtype in (bool, np.uint8, np.int64, np.float32):
        assert confusion_counts(np.array(prediction, dtype), np.array(truth, dtype)) == expected


@pytest.mark.parametrize("values", [np.full((2, 2), 255, np.uint8), np.full((2, 2), 0.5), np.full((2, 2), np.nan)])
def test_what_is_no_mask_is_not_counted(values):
    for pair in ((values, np.zeros((2, 2), bool)), (np.zeros((2, 2), bool), values)):
        with pytest.raises(ValueError, match="other than 0 and 1"):
            confusion_counts(*pair)


def test_masks_of_two_sizes_are_not_counted():
    with pytest.raises(ValueError, match="one size"):
        confusion_counts(np.zeros((1, 3), bool), np.zeros((2, 3), bool))  # would be broadcast


@pytest.mark.parametrize(
    ("counts", "expected"),  # expected in the order of METRICS: ACC, SE, SP, J, threshold J, Dice
    [
        ((6, 1, 2, 11), (17 / 20, 6 / 8, 11 / 12, 6 / 9, 6 / 9, 12 / 15)),
        ((2, 1, 1, 2), (4 / 6, 2 / 3, 2 / 3, 2 / 4, 0, 4 / 6)),
        ((13, 4, 3, 80), (93 / 100, 13 / 16, 80 / 84, 0.65, 0.65, 26 / 33)),  # exactly at the threshold
        ((649, 351, 0, 10), (659 / 1010, 1, 10 / 361, 0.649, 0, 1298 / 1649)),
        ((0, 0, 0, 9), (1, 1, 1, 1, 1, 1)),  # nothing there, nothing found
        ((0, 3, 0, 6), (6 / 9, 1, 6 / 9, 0, 0, 0)),  # nothing there, something found
        ((0, 0, 3, 6), (6 / 9, 0, 1, 0, 0, 0)),  # something there, nothing found
        ((9, 0, 0, 0), (1, 1, 1, 1, 1, 1)),  # all lesion
        ((3, 0, 6, 0), (3 / 9, 3 / 9, 1, 3 / 9, 0, 6 / 12)),  # all lesion, a third found
    ],
)
def test_scores_of_one_image(counts, expected):
    scores = image_scores([counts])
    assert tuple(scores.columns) == METRICS
    assert scores.iloc[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_the_table_has_a_row_of_each_image():
    counts = {"ISIC_0000002": (80, 20, 20, 480), "ISIC_0000001": (0, 0, 0, 25)}
    table = per_image_table(counts)
    assert tuple(table.columns) == ("image_id", *COUNTS, *METRICS)
    assert table["image_id"].tolist() == ["ISIC_0000002", "ISIC_0000001"]
    assert table[list(COUNTS)].to_numpy().tolist() == [[80, 20, 20, 480], [0, 0, 0, 25]]
    assert official_scores(table)["jaccard"] == pytest.approx((80 / 120 + 1) / 2)
    assert pooled_scores(table)["jaccard"] == pytest.approx(80 / 120)
    assert official_scores([*counts.values()]) == official_scores(table)


def test_pooled_scores_by_hand():
    counts = [(8, 0, 2, 90), (0, 10, 10, 0)]  # pooled lesion: 8, 10, 12, 90; background: 90, 12, 10, 8
    scores = pooled_scores(counts)
    expected = (98 / 120, 8 / 20, 90 / 100, 8 / 30, 0, 16 / 38)
    assert [scores[name] for name in METRICS] == pytest.approx(expected)
    assert scores[BOTH]["jaccard"] == pytest.approx((8 / 30 + 90 / 112) / 2)
    assert scores[BOTH]["dice"] == pytest.approx((16 / 38 + 180 / 202) / 2)
    # image 1: lesion 8/10, background 90/92; image 2: both 0
    assert scores[BOTH]["threshold_jaccard"] == pytest.approx((0.8 + 90 / 92) / 4)


def test_pooled_intervals_are_of_the_mean_over_trainings():
    counts = np.random.default_rng(3).integers(0, 1000, (3, 20, 4))
    counts[:, ::4, :2] = 0  # images without positives in the prediction
    generator, drawn = np.random.default_rng(0), []
    for _ in range(60):
        rows = generator.integers(20, size=20)
        drawn.append([pooled_scores(one[rows]) for one in counts])
    intervals = pooled_intervals(counts, resamples=60)
    assert intervals.keys() == set(METRICS) | {BOTH} and len(intervals[BOTH]) == 3
    both = intervals.pop(BOTH)
    for found, scores in ((intervals, lambda one: one), (both, lambda one: one[BOTH])):
        for name in found:
            means = [np.mean([scores(one)[name] for one in each]) for each in drawn]
            assert found[name] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=1e-12)


def test_no_images_is_an_error():
    for score in (lambda: per_image_table({}), lambda: pooled_scores(pd.DataFrame(columns=list(COUNTS)))):
        with pytest.raises(ValueError, match="no images"):
            score()


@pytest.mark.parametrize("counts", [[1, 2, 3, 4], [[1, 2, 3]], [[1.5, 2, 3, 4]], [[-1, 2, 3, 4]], [[0, 0, 0, 0]]])
def test_counts_that_cannot_be(counts):
    with pytest.raises(ValueError, match="counts must"):
        official_scores(counts)
