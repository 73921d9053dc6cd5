"""Patches: where they lie, that they are what they were at every run, and that nothing is lost of the image."""

from collections import Counter
from pathlib import Path

import albumentations as A
import numpy as np
import pytest

from utils.data.isic import Sample
from utils.data.transforms import (
    CENTER,
    FRAME,
    SCALES,
    TEST_PATCHES,
    TRAIN_TRANSFORMS,
    FrameTransforms,
    PatchTransforms,
    draw_patch,
    patch_at,
    take,
)

SAMPLE = Sample("ISIC_0000000", Path("none.jpg"), None, 1)


def test_training_patches_have_the_four_scales_lie_inside_and_hold_the_middle():
    rng = np.random.default_rng(0)
    patches = [draw_patch(rng) for _ in range(2000)]
    scales = Counter(round(patch[2], 6) for patch in patches)
    assert set(scales) == set(SCALES) == {0.2, 0.4, 0.6, 0.8}
    assert min(scales.values()) > 400
    for left, top, width, height in patches:
        assert width == height and min(left, top) >= -1e-9 and max(left + width, top + height) <= 1 + 1e-9
        assert left <= 0.5 <= left + width and top <= 0.5 <= top + height
    lefts = [patch[0] for patch in patches if patch[2] == 0.8]
    assert min(lefts) < 0.01 and max(lefts) > 0.19  # the largest reach both sides of the frame


def test_the_nine_test_patches_are_these_at_every_run():
    assert TEST_PATCHES["9"] == (
        (0.188, 0.107, 0.8, 0.8), (0.167, 0.214, 0.6, 0.6), (0.292, 0.218, 0.4, 0.4),
        (0.414, 0.371, 0.2, 0.2), (0.043, 0.100, 0.8, 0.8), (0.293, 0.111, 0.6, 0.6),
        (0.225, 0.360, 0.4, 0.4), (0.478, 0.345, 0.2, 0.2), (0.087, 0.090, 0.8, 0.8),
    )  # fmt: skip
    for left, top, width, height in TEST_PATCHES["9"]:  # such as training might draw
        assert width == height and width in SCALES
        assert 0.4 <= left + width / 2 <= 0.6 and 0.4 <= top + height / 2 <= 0.6


def test_other_views():
    assert TEST_PATCHES["1"] == (FRAME,) == ((0.0, 0.0, 1.0, 1.0),)
    centred = TEST_PATCHES["center9"]
    assert [round(patch[2], 6) for patch in centred] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for left, top, width, height in centred:
        assert left + width / 2 == pytest.approx(0.5) and top + height / 2 == pytest.approx(0.5)


def test_the_best_epoch_is_chosen_by_the_middle_at_each_scale():
    selection = TRAIN_TRANSFORMS["patches"].selection
    assert [round(patch[2], 6) for patch in selection] == [0.8, 0.6, 0.4, 0.2]
    assert all(left + width / 2 == top + height / 2 == 0.5 for left, top, width, height in selection)


def test_views_of_the_frame_hold_half_of_it_at_least_and_come_from_the_seed():
    views, image = FrameTransforms((64, 48)), ramp(256, 256)
    drawn = [views(image, SAMPLE, seed) for seed in range(40)]
    assert all(view.shape == (48, 64, 3) and view.dtype == np.uint8 and label == SAMPLE.label for view, label in drawn)
    assert np.array_equal(views(image, SAMPLE, 7)[0], drawn[7][0])
    # The ramp rises by one a pixel along the rows: the range of a view is the share of the frame it holds, or more of
    # its diagonal when it is turned; the crop of half the area has sides of at least 1/sqrt(2 · 1.25).
    spans = [int(view[..., 0].max()) - int(view[..., 0].min()) for view, _ in drawn]
    assert min(spans) > 256 * 0.6 and max(spans) > 256 * 0.9
    assert len({view.tobytes() for view, _ in drawn}) == 40


def ramp(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: red rises to the right, green downwards."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def test_take_is_the_rectangle_it_says():
    image = ramp(400, 200)
    assert np.array_equal(take(image, FRAME, (400, 200)), image)
    assert np.array_equal(take(image, (0.25, 0.5, 0.2, 0.2), (80, 40)), image[100:140, 100:180])
    view = take(image, patch_at(0.4, 0.6, 0.4), (50, 60))
    assert view.shape == (60, 50, 3)
    assert view[..., 0].mean() == pytest.approx(0.6 * 255, abs=2) and view[..., 1].mean() == pytest.approx(
        0.4 * 255, abs=2
    )


def test_patches_come_from_the_finer_center_where_that_holds_them():
    image = ramp(400, 200)
    frame, center = image[::4, ::4], take(image, CENTER, (160, 80))
    assert np.array_equal(center, image[60:140, 120:280])
    rng = np.random.default_rng(0)
    for patch in [*TEST_PATCHES["9"], *TEST_PATCHES["center9"], *(draw_patch(rng) for _ in range(200))]:
        drawn = take((frame, center), patch, (40, 20))
        if patch[2] < 0.21:
            assert abs(drawn.astype(int) - take(image, patch, (40, 20))).max() <= 2
        elif patch[2] > 0.41:
            assert np.array_equal(drawn, take(frame, patch, (40, 20)))


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (64, 64), (300, 31)])
@pytest.mark.parametrize("name", TEST_PATCHES)
def test_take_works_at_any_image_size(shape, name):
    for patch in TEST_PATCHES[name]:
        assert take(np.zeros((*shape, 3), np.uint8), patch, (32, 48)).shape == (48, 32, 3)


def test_shrinking_averages():
    """A fine chequerboard becomes grey, not an alias of itself."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    view = take(np.repeat(board[..., None], 3, 2).astype(np.uint8), patch_at(0.5), (64, 64))
    assert abs(view.astype(int) - 127).max() <= 1


def test_a_view_depends_on_its_seed_alone():
    views, image = PatchTransforms((48, 32)), ramp(200, 200)
    first, label = views(image, SAMPLE, 7)
    assert first.shape == (32, 48, 3) and first.dtype == np.uint8 and label == 1
    views(image, SAMPLE, 8)
    assert np.array_equal(views(image, SAMPLE, 7)[0], first)
    assert np.array_equal(PatchTransforms((48, 32))(image, SAMPLE, 7)[0], first)
    assert len({views(image, SAMPLE, seed)[0].tobytes() for seed in range(50)}) == 50


def test_flips_are_drawn_independently_and_rotation_stays_within_10_degrees():
    views, image = PatchTransforms((64, 64)), ramp(256, 256)
    seen = Counter()
    for seed in range(300):
        view = views(image, SAMPLE, seed)[0].astype(float)[16:48, 16:48]
        right, down = np.gradient(view[..., 0]), np.gradient(view[..., 1])
        angle = np.degrees(np.arctan2(abs(right[0].mean()), abs(right[1].mean())))
        assert angle < 12
        seen[right[1].mean() > 0, down[0].mean() > 0] += 1
    assert len(seen) == 4 and min(seen.values()) > 45


def test_the_rotation_shows_no_empty_corners():
    views = PatchTransforms((64, 64))
    views.transforms = A.Compose([t for t in views.transforms.transforms if isinstance(t, A.Affine)])
    white = np.full((100, 100, 3), 255, np.uint8)
    assert min(views(white, SAMPLE, seed)[0].min() for seed in range(30)) == 255
