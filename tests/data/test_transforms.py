"""What networks are trained on and scored by: where patches lie, that image and mask stay together, what is drawn."""

from collections import Counter
from pathlib import Path

import albumentations as A
import numpy as np
import pytest

from utils.data.isic import Sample
from utils.data.transforms import (
    TEST_PATCHES,
    TRAIN_TRANSFORMS,
    SegmentationTransforms,
    draw_patch,
    patch_at,
    take,
)

SAMPLE = Sample("ISIC_0000000", Path("none.jpg"), None, 1)
FRAME, CENTER = patch_at(1), patch_at(0.4)
PATCHES, FRAMES = (TRAIN_TRANSFORMS[name].build for name in ("patches", "frame"))
ALL = (SegmentationTransforms, FRAMES, PATCHES)


def ramp(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 4]: red rises to the right, green downwards; the mask, after them, is 1."""
    image = np.zeros((height, width, 4), np.uint8)
    image[..., 0], image[..., 1] = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    image[..., 3] = 1
    return image


def draw(transforms, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | int]:
    return transforms(pixels if isinstance(transforms, SegmentationTransforms) else pixels[..., :3], SAMPLE, seed)


def only(transforms, *kinds: type):
    if isinstance(transforms, PATCHES):
        return transforms  # they have no steps to take out
    steps = [step for step in transforms.transforms.transforms if isinstance(step, kinds)]
    assert len(steps) == len(kinds)
    transforms.transforms, transforms.noisy = A.Compose(steps), 0
    return transforms


def test_training_patches_have_the_four_scales_lie_inside_and_hold_the_middle():
    patches = [*map(draw_patch, [np.random.default_rng(0)] * 2000)]
    scales = Counter(round(patch[2], 6) for patch in patches)
    assert set(scales) == {0.2, 0.4, 0.6, 0.8} and min(scales.values()) > 400
    for left, top, width, height in patches:
        assert width == height and min(left, top) >= -1e-9 and max(left + width, top + height) <= 1 + 1e-9
        assert left <= 0.5 <= left + width and top <= 0.5 <= top + height
    assert np.ptp([patch[0] for patch in patches if patch[2] == 0.8]) > 0.18  # the largest reach both sides


def test_images_are_scored_and_epochs_chosen_by_these_patches_at_every_run():
    assert TEST_PATCHES == {
        "9": (
            (0.188, 0.107, 0.8, 0.8), (0.167, 0.214, 0.6, 0.6), (0.292, 0.218, 0.4, 0.4),
            (0.414, 0.371, 0.2, 0.2), (0.043, 0.100, 0.8, 0.8), (0.293, 0.111, 0.6, 0.6),
            (0.225, 0.360, 0.4, 0.4), (0.478, 0.345, 0.2, 0.2), (0.087, 0.090, 0.8, 0.8),
        ), "1": ((0.0, 0.0, 1.0, 1.0),),
    }  # fmt: skip
    assert TRAIN_TRANSFORMS["patches"].selection == tuple(patch_at(scale, 0.5, 0.5) for scale in (0.8, 0.6, 0.4, 0.2))
    assert TRAIN_TRANSFORMS["frame"].selection == (FRAME,) and TRAIN_TRANSFORMS["frame"].selection_flips


def test_take_is_the_rectangle_it_says():
    image = ramp(400, 200)[..., :3]
    assert np.array_equal(take(image, FRAME, (400, 200)), image)
    assert np.array_equal(take(image, (0.25, 0.5, 0.2, 0.2), (80, 40)), image[100:140, 100:180])
    taken = take(image, patch_at(0.4, 0.6, 0.4), (50, 60))
    assert taken.shape == (60, 50, 3) and taken[..., :2].mean(axis=(0, 1)) == pytest.approx(
        [0.6 * 255, 0.4 * 255], abs=2
    )
    board = np.indices((256, 256)).sum(0) % 2 * 255  # a fine chequerboard becomes grey, not an alias of itself
    taken = take(np.repeat(board[..., None], 3, 2).astype(np.uint8), patch_at(0.5), (64, 64))
    assert abs(taken.astype(int) - 127).max() <= 1
    for shape in ((5, 7), (1, 1), (300, 31)):
        for patch in TEST_PATCHES["9"]:
            assert take(np.zeros((*shape, 3), np.uint8), patch, (32, 48)).shape == (48, 32, 3)


def test_patches_come_from_the_finer_center_where_that_holds_them():
    image = ramp(400, 200)[..., :3]
    frame, center = image[::4, ::4], image[60:140, 120:280]
    for patch in [*TEST_PATCHES["9"], CENTER, *map(draw_patch, [np.random.default_rng(0)] * 200)]:
        drawn = take((frame, center), patch, (40, 20))
        if patch[2] < 0.21 or patch == CENTER:
            assert abs(drawn.astype(int) - take(image, patch, (40, 20))).max() <= 2
        elif patch[2] > 0.41:
            assert np.array_equal(drawn, take(frame, patch, (40, 20)))


@pytest.mark.parametrize("kind", ALL)
def test_what_is_drawn_depends_on_the_seed_alone(kind):
    drawn = [draw(kind((48, 32)), ramp(150, 120), seed)[0] for seed in range(50)]
    assert len({each.tobytes() for each in drawn}) == 50
    assert all(each.shape == (32, 48, 3) and each.dtype == np.uint8 for each in drawn)
    image, target = draw(kind((48, 32)), ramp(150, 120), 7)
    assert np.array_equal(image, drawn[7]) and (kind is SegmentationTransforms or target == SAMPLE.label)


@pytest.mark.parametrize("kind", ALL)
def test_flips_are_drawn_independently(kind):
    """With `set_random_seed`, one seed for every transform, an image would be flipped both ways or not at all."""
    transforms, seen = only(kind((64, 64)), A.HorizontalFlip, A.VerticalFlip), Counter()
    for seed in range(200):
        image = draw(transforms, ramp(64, 64), seed)[0]
        seen[bool(image[32, 40, 0] > image[32, 24, 0]), bool(image[40, 32, 1] > image[24, 32, 1])] += 1
    assert len(seen) == 4 and min(seen.values()) > 25


@pytest.mark.parametrize("kind", ALL)
def test_images_are_turned_and_what_that_uncovers_is_filled_with_surroundings(kind):
    limit, share = (10, 1) if kind is PATCHES else (30, 0.5)
    transforms, angles, flat = only(kind((64, 64)), A.Rotate), [], np.full((64, 64, 4), (100, 100, 100, 1), np.uint8)
    for seed in range(100):
        down, right = np.gradient(draw(transforms, ramp(64, 64), seed)[0].astype(float)[24:40, 24:40, 0])
        angles.append(np.degrees(np.arctan2(abs(down.mean()), abs(right.mean()))))
        filled, target = draw(transforms, flat, seed)
        assert abs(filled.astype(int) - 100).max() <= 1 and np.min(target) == 1
    assert limit * 0.8 < max(angles) < limit * 1.2 and np.mean(np.array(angles) > 0.5) == pytest.approx(share, abs=0.2)


def test_a_turned_patch_has_the_middle_and_the_scale_of_the_one_that_was_drawn():
    image = ramp(800, 400)[..., :3]
    for pixels in (image, (image[::4, ::4], image[120:280, 240:560])):
        for seed in range(100):
            left, top, scale, _ = draw_patch(np.random.default_rng(seed))
            drawn, middle = PATCHES((48, 32))(pixels, SAMPLE, seed)[0][..., :2].astype(float), (left, top)
            assert drawn.mean(axis=(0, 1)) / 255 == pytest.approx(np.add(middle, scale / 2), abs=0.015)
            across = [np.diff(drawn[:, [12, 36], 0].mean(0)), np.diff(drawn[[8, 24], :, 1].mean(1))]  # half of a side
            assert np.abs(across) / 255 == pytest.approx(scale / 2, rel=0.1)


@pytest.mark.parametrize("kind", [SegmentationTransforms, FRAMES])
def test_crops_hold_half_of_the_area_or_more(kind):
    transforms = only(kind((48, 32)), A.RandomResizedCrop)
    drawn = [draw(transforms, ramp(72, 48), seed)[0] for seed in range(200)]
    areas = [np.ptp(each[..., 0]) / 255 * (np.ptp(each[..., 1]) / 255) for each in drawn]
    assert min(areas) > 0.42 and max(areas) > 0.9 and np.std(areas) > 0.05


def test_the_mask_stays_with_its_image_and_some_images_are_noisy():
    """The red of the image is the mask: their edges, and all that is moved, must agree within a tenth of a pixel."""
    whole, cropping = SegmentationTransforms((48, 32)), only(SegmentationTransforms((48, 32)), A.RandomResizedCrop)
    shifts, overlaps, noise = [], [], []
    for seed in range(200):
        pixels = np.full((48, 72, 4), (0, 0, 100, 0), np.uint8)
        pixels[:, : 25 + seed % 20, 0], pixels[:, : 25 + seed % 20, 3] = 255, 1
        image, mask = cropping(pixels, SAMPLE, seed)
        shifts.append((image[16, :, 0] > 127).sum() - mask[16].sum())
        image, mask = whole(pixels, SAMPLE, seed)
        overlaps.append(np.mean((image[..., 0] > 127) == (mask == 1)))
        noise.append(image[..., 2].std() > 1)
    assert abs(np.mean(shifts)) < 0.1 and min(overlaps) > 0.93 and 0.2 < np.mean(noise) < 0.4


def test_noise_is_gaussian_and_its_deviation_uniform_between_1_and_5_percent():
    """Of every value by itself: pixels and channels are independent; it does not wrap around at black and white."""
    transforms, deviations = only(SegmentationTransforms((64, 64)), A.HorizontalFlip), []
    transforms.noisy = 1
    for seed in range(150):
        image, mask = draw(transforms, np.full((64, 64, 4), (128, 128, 128, 1), np.uint8), seed)
        noise = image.astype(float) - 128
        deviations.append(noise.std() / 255)
        assert abs(noise.mean()) < 0.05 * noise.std() and mask.min() == 1
        assert (np.abs(noise) > 2 * noise.std()).mean() == pytest.approx(0.046, abs=0.025)
        assert abs(np.corrcoef(noise.reshape(-1, 3).T)[0, 1]) < 0.1 and (noise[0] != noise[1]).mean() > 0.7
    assert min(deviations) > 0.0095 and max(deviations) < 0.0515
    assert np.quantile(deviations, [0.25, 0.5, 0.75]) == pytest.approx([0.02, 0.03, 0.04], abs=0.005)
    dark = draw(transforms, np.full((64, 64, 4), (0, 255, 0, 1), np.uint8), 3)[0]
    assert np.median(dark[..., 0]) <= 1 and np.median(dark[..., 1]) >= 254
