"""From prepared images to batches: drawn reproducibly, whoever draws them, and without opening an image file."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small import CPU
from utils import UserError
from utils.data.cache import prepare
from utils.data.loader import EpochBatches, TrainingSet, to_input, train_loader
from utils.data.transforms import SegmentationTransforms

# A notebook that was converted to a script: without a guard, importing it once more would run it once more.
CONVERTED = """
import pickle
from tests.data.test_loader import a_loader, batches, equal
open("ran.txt", "a").write("once ")
cache = pickle.load(open("cache.pickle", "rb"))
alone, helped = a_loader(cache), a_loader(cache, workers=1)
print(*(equal(batches(alone, epoch), batches(helped, epoch)) for epoch in (0, 1)), __spec__, __file__)
"""


@pytest.fixture
def cache(samples, tmp_path):
    return prepare(samples, (72, 48), tmp_path / "cache")


def a_loader(cache, seed: int = 0, workers: int = 0):
    return train_loader(cache, SegmentationTransforms((48, 32)), 4, seed, CPU, workers)


def batches(loader, epoch: int = 0) -> list[torch.Tensor]:
    """Images and masks side by side, uint8 [B, H, W, 4]."""
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images, masks.unsqueeze(-1)], dim=-1) for images, masks in loader]


def equal(a, b) -> bool:
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


@pytest.mark.parametrize(("count", "expected"), [(3, [3]), (4, [4]), (9, [4, 4]), (10, [4, 4])])
def test_no_small_last_batch(samples, tmp_path, count, expected):
    """One image alone must not have the last word on weights and running statistics before they are scored."""
    drawn = batches(a_loader(prepare(samples[:count], (72, 48), tmp_path / "cache")))
    assert [each.shape for each in drawn] == [(images, 32, 48, 4) for images in expected]
    assert all(each.dtype == torch.uint8 and set(each[..., 3].unique().tolist()) == {0, 1} for each in drawn)


def test_draws_depend_on_seed_and_epoch_alone(cache):
    """And leave the global random state as it is."""
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = batches(a_loader(cache), 3)
    assert equal(first, batches(a_loader(cache), 3))
    assert not equal(first, batches(a_loader(cache), 4)) and not equal(first, batches(a_loader(cache, seed=1), 3))
    for draws in ([(seed, 0) for seed in range(9)], [(0, epoch) for epoch in range(9)]):
        sets = [(TrainingSet(cache, SegmentationTransforms((48, 32)), seed), epoch) for seed, epoch in draws]
        assert len({images[epoch, 0][0].tobytes() for images, epoch in sets}) == 9
    assert list(a_loader(cache).batch_sampler) != list(a_loader(cache, seed=1).batch_sampler)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_loader_processes_draw_the_same_and_do_not_run_the_main_script(cache, tmp_path):
    """They live on into the second epoch."""
    (tmp_path / "converted.py").write_text(CONVERTED)
    (tmp_path / "cache.pickle").write_bytes(pickle.dumps(cache))
    command, variables = [sys.executable, "converted.py"], os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=900)
    assert done.stdout.startswith("True True None ") and done.stdout.endswith("converted.py\n"), done.stderr
    assert (tmp_path / "ran.txt").read_text() == "once "


def test_every_image_once_an_epoch_in_another_order():
    sampler, orders = EpochBatches(50, 10, seed=0), []
    for epoch in range(3):
        sampler.epoch = epoch
        epochs, order = zip(*(key for batch in sampler for key in batch), strict=True)
        assert set(epochs) == {epoch} and sorted(order) == list(range(50))
        orders.append(order)
    assert len(set(orders)) == 3 and list(EpochBatches(50, 10, seed=1)) != list(EpochBatches(50, 10, seed=0))


@pytest.mark.parametrize(("accumulate", "processes"), [(3, 1), (1, 2), (3, 2)])
def test_micro_batches_of_all_processes_are_the_batch_of_one(accumulate, processes):
    """In order, also of the rest of an epoch that was stopped."""
    whole, shares = EpochBatches(50, 12, seed=0), []
    for rank in range(processes):
        share = EpochBatches(50, 12, 0, accumulate, rank, processes)
        share.start = whole.start = 1
        shares.append(list(share))
        assert len(share) == len(shares[-1]) == 3 * accumulate
        assert share.indices(1) == [index for _, index in next(iter(whole))]
    for step, batch in enumerate(whole):
        parts = [part for share in shares for part in share[step * accumulate : (step + 1) * accumulate]]
        assert [key for part in parts for key in part] == batch
        assert {len(part) for part in parts} == {12 // (accumulate * processes)}
    with pytest.raises(UserError, match=r"a batch of 12 cannot be shared by 2 processes in 5 .* a multiple of 10"):
        EpochBatches(50, 12, 0, 5, 0, 2)


def test_an_epoch_opens_no_image_file(samples, cache):
    """Old fault: every epoch decoded the full-size JPEGs. Here the files are even gone after the first time."""
    before = batches(a_loader(cache))
    for path in (path for sample in samples for path in (sample.image, sample.mask)):
        path.unlink()
    assert equal(before, batches(a_loader(cache)))


def test_input_is_normalised_and_channels_last():
    x = to_input(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8).repeat(2, 4, 5, 1), CPU)
    assert x.shape == (2, 3, 4, 5) and x.is_contiguous(memory_format=torch.channels_last)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert torch.allclose(x[0, :, 0, 0], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("share", "images", "mixed"), [(0.5, 90, 4), (0.25, 90, 2), (0.5, 3, 4), (1.0, 90, 8), (0.05, 90, 1)]
)
def test_extra_images_have_their_share_of_each_batch(share, images, mixed):
    """As many steps as without them; every image once at most, but for extra ones that are too few."""
    batches = EpochBatches(50, 8, seed=3, accumulate=2, extra=images, share=share)
    drawn = np.array([[index for _, index in half] for half in batches]).reshape(6, 8)
    extra, own = drawn[drawn >= 50], drawn[drawn < 50]
    assert ((drawn >= 50).sum(1) == mixed).all() and len(set(own)) == len(own)
    assert extra.max(initial=50) < 50 + images and (len(set(extra)) == len(extra) or images == 3)
    assert share == 1.0 or len({tuple(row) for row in drawn >= 50}) > 1  # not all extra ones in one micro-batch
