"""Probabilities of the classes: the mean over views and flips, of images stored as large as those need them."""

import numpy as np
import pytest
import torch
import torchvision

from tests.small import FLOAT32
from utils.data.cache import ImageCache, prepare
from utils.data.isic import read_split
from utils.data.synthetic import make_synthetic
from utils.data.transforms import TEST_PATCHES, TRAIN_TRANSFORMS, cache_sizes, take
from utils.inference.classification import class_probabilities, examples


@pytest.fixture
def images(tmp_path) -> ImageCache:
    data = make_synthetic(tmp_path / "data", {"train": 1, "validation": 1, "test": 6}, (80, 64), seed=3)
    return prepare(read_split(data, "test"), (80, 64), tmp_path / "cache", masks=False)


class MeanColour(torch.nn.Module):
    """Logits that know left from right and up from down."""

    def forward(self, x):
        return torch.stack([x[..., :8, :4].mean((1, 2, 3)), x[..., 5:].mean((1, 2, 3)), x.mean((1, 2, 3))], 1)


def test_probabilities_are_the_mean_over_views_and_flips(images):
    model, mean, deviation = MeanColour(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def by_hand(image: np.ndarray) -> torch.Tensor:
        seen = []
        for patch in TEST_PATCHES["9"]:
            view = torch.from_numpy(take(image, patch, (16, 12)))
            for axes in ([], [0], [1], [0, 1]):
                pixels = view.flip(axes).permute(2, 0, 1)[None] / 255
                seen.append(model(torchvision.transforms.functional.normalize(pixels, mean, deviation)).softmax(1)[0])
        return torch.stack(seen).mean(0)

    expected = torch.stack([by_hand(image) for image in map(images.frame, range(6))])
    for batch_size in (5, 64):
        got = class_probabilities(model, images, FLOAT32, (16, 12), batch_size, TEST_PATCHES["9"], flips=True)
        assert got.shape == (6, 3) and np.allclose(got, expected, atol=1e-5)


def test_examples_are_best_and_worst_of_each_class():
    probabilities = np.array([[0.9, 0.05, 0.05], [0.2, 0.4, 0.4], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    assert examples(probabilities, np.array([0, 0, 0, 2, 2])) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("size", "transforms", "expected"),
    [
        ((224, 224), "patches", ((224, 224), None)),  # the network's input at least
        ((30, 60), "patches", ((75, 64), None)),  # no center that would be no finer
        ((10, 10), "patches", ((25, 25), (20, 20))),
        ((10, 10), "frame", ((15, 15), None)),
    ],
)
def test_an_image_is_stored_no_larger_than_it_is(size, transforms, expected):
    assert cache_sizes((80, 64), size, TRAIN_TRANSFORMS[transforms]) == expected
