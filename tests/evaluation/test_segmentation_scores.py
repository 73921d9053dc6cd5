"""The segmentation scores: against hand-computed numbers, the official functions and the published table."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isic_challenge_scoring import metrics as official_metrics

from utils.evaluation.segmentation import (
    COUNTS,
    METRICS,
    SegmentationCounts,
    confusion_counts,
    image_scores,
    official_scores,
    pooled_intervals,
    pooled_scores,
)
from utils.evaluation.tables import OTHERS

relaxed = settings(deadline=None, max_examples=40)  # timing is no property; a shared machine stalls now and then
BOTH = "mean_of_background_and_lesion"
MASK_PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)
IMAGE_COUNTS = st.tuples(*[st.integers(0, 30_000_000) | st.integers(0, 3)] * 4).filter(any)


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


@relaxed
@given(MASK_PAIRS)
def test_counts_cover_every_pixel_and_know_the_direction(pair):
    prediction, truth = pair
    before = prediction.copy(), truth.copy()
    tp, fp, fn, tn = confusion_counts(prediction, truth)
    assert tp + fp + fn + tn == truth.size
    assert confusion_counts(truth, prediction) == (tp, fn, fp, tn)
    assert confusion_counts(~prediction, ~truth) == (tn, fn, fp, tp)
    assert confusion_counts(prediction.T, truth.T) == (tp, fp, fn, tn)  # no assumption about memory order
    assert all(type(count) is int for count in (tp, fp, fn, tn))
    assert np.array_equal(prediction, before[0]) and np.array_equal(truth, before[1])


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


@relaxed
@given(st.lists(IMAGE_COUNTS, min_size=1, max_size=8))
def test_every_image_scores_as_the_official_functions(rows):
    scores = image_scores(rows)
    for (tp, fp, fn, tn), (_, ours) in zip(rows, scores.iterrows(), strict=True):
        matrix = pd.Series({"TP": tp, "FP": fp, "FN": fn, "TN": tn})
        for name in METRICS:
            assert ours[name] == getattr(official_metrics, f"binary_{name}")(matrix), name
    assert scores.to_numpy().min() >= 0 and scores.to_numpy().max() <= 1
    assert official_scores(rows) == pytest.approx(scores.mean().to_dict(), abs=1e-15)
    assert official_scores(rows[::-1]) == pytest.approx(official_scores(rows), abs=1e-14)


def test_counts_are_collected_image_by_image():
    counts = SegmentationCounts()
    counts.add_counts("ISIC_0000002", (80, 20, 20, 480))
    counts.add_counts("ISIC_0000001", (0, 0, 0, 25))
    table = counts.per_image()
    assert len(counts) == 2
    assert tuple(table.columns) == ("image_id", *COUNTS, *METRICS)
    assert table["image_id"].tolist() == ["ISIC_0000002", "ISIC_0000001"]
    assert table[list(COUNTS)].to_numpy().tolist() == [[80, 20, 20, 480], [0, 0, 0, 25]]
    assert counts.official()["jaccard"] == pytest.approx((80 / 120 + 1) / 2)
    assert pooled_scores(table)["jaccard"] == pytest.approx(80 / 120)
    assert counts.official() == official_scores(table)


def test_pooled_scores_by_hand():
    counts = [(8, 0, 2, 90), (0, 10, 10, 0)]  # pooled lesion: 8, 10, 12, 90; background: 90, 12, 10, 8
    scores = pooled_scores(counts)
    expected = (98 / 120, 8 / 20, 90 / 100, 8 / 30, 0, 16 / 38)
    assert [scores[name] for name in METRICS] == pytest.approx(expected)
    assert scores[BOTH]["jaccard"] == pytest.approx((8 / 30 + 90 / 112) / 2)
    assert scores[BOTH]["dice"] == pytest.approx((16 / 38 + 180 / 202) / 2)
    # image 1: lesion 8/10, background 90/92; image 2: both 0
    assert scores[BOTH]["threshold_jaccard"] == pytest.approx((0.8 + 90 / 92) / 4)


@relaxed
@given(st.lists(IMAGE_COUNTS, min_size=1, max_size=8))
def test_pooled_scores_sum_pixels(rows):
    scores = pooled_scores(rows)
    assert {name: scores[name] for name in METRICS} == official_scores([np.sum(rows, axis=0)])
    swapped = pooled_scores([row[::-1] for row in rows])  # background and lesion change places
    assert swapped["sensitivity"] == scores["specificity"]
    assert swapped[BOTH] == pytest.approx(scores[BOTH], abs=1e-14)


# Published values of the earlier project: ACC, SE, SP, and the means of background and lesion JSI, DSC, TJI.
PUBLISHED = {each["by"]: tuple(each["scores"].values()) for each in OTHERS["segmentation"] if len(each["scores"]) == 6}


def pooled_from_rates(accuracy: float, sensitivity: float, specificity: float) -> dict:
    """The lesion's share p of all pixels follows from ACC = p·SE + (1 - p)·SP, and with it all four counts."""
    pixels = 10**10
    lesion = round(pixels * (specificity - accuracy) / (specificity - sensitivity))
    tp, tn = round(lesion * sensitivity), round((pixels - lesion) * specificity)
    return pooled_scores([(tp, pixels - lesion - tn, lesion - tp, tn)])


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_means_follow_from_published_rates(row):
    *rates, jaccard, dice, _ = PUBLISHED[row]
    unit = 5e-5  # the rates are rounded to four digits, so each may lie this far off
    corners = [pooled_from_rates(*np.add(rates, shift)) for shift in itertools.product((-unit, unit), repeat=3)]
    for name, published in (("jaccard", jaccard), ("dice", dice)):
        possible = [corner[BOTH][name] for corner in corners]
        assert min(possible) - unit <= published <= max(possible) + unit
        assert max(possible) - min(possible) < 3e-4  # the check is a sharp one
        assert all(corner[name] < published - 0.03 for corner in corners)  # the lesion's own value is another


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
    for score in (SegmentationCounts().per_image, lambda: pooled_scores(pd.DataFrame(columns=list(COUNTS)))):
        with pytest.raises(ValueError, match="no images"):
            score()


@pytest.mark.parametrize("counts", [[1, 2, 3, 4], [[1, 2, 3]], [[1.5, 2, 3, 4]], [[-1, 2, 3, 4]], [[0, 0, 0, 0]]])
def test_counts_that_cannot_be(counts):
    with pytest.raises(ValueError, match="counts must"):
        official_scores(counts)
