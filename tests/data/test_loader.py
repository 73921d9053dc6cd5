"""From prepared images to batches: drawn reproducibly, image and mask alike."""

from collections import Counter

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.cache import prepare
from utils.data.loader import EpochBatches, TrainingSet, to_input, train_loader
from utils.data.transforms import SegmentationTransforms, cache_size

SIZE = (48, 32)
CPU = torch.device("cpu")


def batches(samples, tmp_path, epoch=0, seed=0, workers=0):
    loader = train_loader(
        prepare(samples, (72, 48), tmp_path / "cache"), SegmentationTransforms(SIZE), 4, seed, CPU, workers
    )
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images, masks.unsqueeze(-1)], dim=-1) for images, masks in loader]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shapes_and_types(samples, tmp_path):
    loader = train_loader(prepare(samples, (72, 48), tmp_path / "cache"), SegmentationTransforms(SIZE), 4, 0, CPU)
    images, masks = next(iter(loader))
    assert images.shape == (4, 32, 48, 3) and images.dtype == torch.uint8
    assert masks.shape == (4, 32, 48) and set(masks.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("count,expected", [(3, [3]), (4, [4]), (9, [4, 4]), (10, [4, 4])])
def test_no_small_last_batch(samples, tmp_path, count, expected):
    """One image alone must not have the last word on weights and running statistics before they are scored."""
    loader = train_loader(
        prepare(samples[:count], (72, 48), tmp_path / "cache"), SegmentationTransforms(SIZE), 4, 0, CPU
    )
    assert [len(images) for images, _ in loader] == expected


def test_draws_depend_on_seed_and_epoch_alone(samples, tmp_path):
    first = batches(samples, tmp_path, epoch=3)
    assert equal(first, batches(samples, tmp_path, epoch=3))
    assert not equal(first, batches(samples, tmp_path, epoch=4))
    assert not equal(first, batches(samples, tmp_path, epoch=3, seed=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_draws_do_not_depend_on_the_number_of_workers(samples, tmp_path, workers):
    loader = train_loader(
        prepare(samples, (72, 48), tmp_path / "cache"), SegmentationTransforms(SIZE), 4, 0, CPU, workers
    )
    for epoch in (0, 1):  # the workers live on into the second epoch
        loader.batch_sampler.epoch = epoch
        got = [torch.cat([images, masks.unsqueeze(-1)], dim=-1) for images, masks in loader]
        assert equal(got, batches(samples, tmp_path, epoch=epoch))


def test_global_random_state_is_left_alone(samples, tmp_path):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches(samples, tmp_path)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_every_image_once_an_epoch_in_another_order():
    sampler = EpochBatches(50, 10, seed=0)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        epochs, order = zip(*(key for batch in sampler for key in batch), strict=True)
        assert set(epochs) == {epoch} and sorted(order) == list(range(50))
        orders.append(order)
    assert len(set(orders)) == 3


def test_flips_are_drawn_independently(samples, tmp_path):
    """A quarter of the views each: as is, left-right, upside down, both. With one seed for every transform, which
    `set_random_seed` gives, a view is flipped both ways or not at all."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:], image[32:, :48], image[32:, 48:] = 10, 90, 170, 250
    Image.fromarray(image).save(samples[0].image)
    data = TrainingSet(prepare(samples[:1], SIZE, tmp_path / "cache"), SegmentationTransforms(SIZE), seed=0)
    data.views.transforms = A.Compose(
        [t for t in data.views.transforms.transforms if isinstance(t, (A.HorizontalFlip, A.VerticalFlip))]
    )
    assert len(data.views.transforms.transforms) == 2
    seen = Counter(int(data[epoch, 0][0][2, 2, 0]) for epoch in range(200))
    assert sorted(seen) == [10, 90, 170, 250]
    assert min(seen.values()) > 25


def test_views_are_turned_cropped_and_noisy(samples, tmp_path):
    """A half that is bright: its edge lies level only where the view is not turned; a flat image shows the noise."""
    cache = prepare(samples[:2], SIZE, tmp_path / "cache")
    halves, flat = np.zeros((2, 32, 48, 4), np.uint8)
    halves[:16], flat[...] = 200, 100
    views, sample = SegmentationTransforms(SIZE), cache.samples[0]
    rotate = [transform for transform in views.transforms.transforms if isinstance(transform, A.Rotate)]
    assert [transform.limit for transform in rotate] == [(-30, 30)]
    edges = [(views(halves, sample, seed)[1] > 0).sum(axis=0) for seed in range(100)]
    turned = np.mean([np.ptp(edge) > 2 for edge in edges])
    cropped = len({int(np.median(edge)) for edge in edges})
    noisy = np.mean([views(flat, sample, seed)[0].std() > 1 for seed in range(300)])
    assert 0.25 < turned < 0.6 and cropped > 8 and 0.2 < noisy < 0.4


def only(views: SegmentationTransforms, kind: type) -> SegmentationTransforms:
    views.transforms = A.Compose([each for each in views.transforms.transforms if isinstance(each, kind)])
    return views


def test_crops_hold_half_of_the_area_or_more_and_the_mask_stays_in_place(samples):
    """The image is the mask beside a ramp: its edge must lie where the mask's does, within a tenth of a pixel."""
    stored = np.zeros((48, 72, 4), np.uint8)
    stored[..., 1], stored[..., 2] = np.linspace(0, 255, 72)[None], np.linspace(0, 255, 48)[:, None]
    shifts, areas = [], []
    for seed in range(200):
        stored[..., 0], stored[..., 3] = 0, 0
        stored[:, : 25 + seed % 20, 0], stored[:, : 25 + seed % 20, 3] = 255, 1
        image, mask = only(SegmentationTransforms(SIZE), A.RandomResizedCrop)(stored, samples[0], seed)
        shifts.append((image[16, :, 0] > 127).sum() - mask[16].sum())
        areas.append(np.ptp(image[..., 1]) / 255.0 * np.ptp(image[..., 2]) / 255.0)
    assert abs(np.mean(shifts)) < 0.1 and min(areas) > 0.42 and max(areas) > 0.9


def test_what_a_turned_view_uncovers_is_filled_with_its_surroundings(samples):
    flat = np.full((48, 72, 4), 100, np.uint8)
    flat[..., 3] = 1
    for seed in range(20):
        image, mask = only(SegmentationTransforms(SIZE), A.Rotate)(flat, samples[0], seed)
        assert image.min() == 100 and mask.min() == 1


def test_order_and_views_each_depend_on_the_seed(samples, tmp_path):
    assert list(EpochBatches(50, 10, seed=0)) != list(EpochBatches(50, 10, seed=1))
    cache = prepare(samples, (72, 48), tmp_path / "cache")
    one, other = (TrainingSet(cache, SegmentationTransforms(SIZE), seed)[0, 0][0] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_training_images_are_stored_larger_than_the_network_sees_them():
    """A crop of half the area is then no smaller than the network's input."""
    width, height = cache_size((336, 224))
    assert width * height * 0.5 >= 336 * 224 and (width, height) == (504, 336)


def test_mask_follows_the_image(samples, tmp_path):
    data = TrainingSet(prepare(samples, (72, 48), tmp_path / "cache"), SegmentationTransforms(SIZE), seed=0)
    for epoch in range(20):
        for index in range(len(samples)):
            image, mask = data[epoch, index]
            bright = image.mean(axis=2) > 105
            overlap = (bright & (mask == 1)).sum() / max(1, (bright | (mask == 1)).sum())
            assert overlap > 0.75 or (mask == 1).sum() < 40


def test_an_epoch_opens_no_image_file(samples, tmp_path):
    """Old fault: every epoch decoded the full-size JPEGs. Here the files may even be gone after the first time."""
    before = batches(samples, tmp_path)
    cache = prepare(samples, (72, 48), tmp_path / "cache")
    for sample in samples:
        sample.image.unlink()
        sample.mask.unlink()
    loader = train_loader(cache, SegmentationTransforms(SIZE), 4, 0, CPU)
    assert equal(before, [torch.cat([images, masks.unsqueeze(-1)], dim=-1) for images, masks in loader])


def test_input_is_normalised_and_channels_last():
    images = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8).repeat(2, 4, 5, 1)
    x = to_input(images, CPU)
    assert x.shape == (2, 3, 4, 5) and x.is_contiguous(memory_format=torch.channels_last)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert torch.allclose(x[0, :, 0, 0], torch.tensor(expected), atol=1e-6)
