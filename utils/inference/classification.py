"""Probabilities of the three classes from a network, averaged over patches of a photograph."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from utils import UserError, distributed
from utils.data.cache import ImageCache
from utils.data.isic import Sample
from utils.data.parallel import in_order
from utils.data.transforms import FLIPS, Patch, Pixels, take
from utils.device import Precision
from utils.inference.network import predict


def classify(
    model: nn.Module,
    images: Iterable[Pixels],
    precision: Precision,
    size: tuple[int, int],
    batch_size: int,
    patches: Sequence[Patch],
    flips: bool = False,
) -> Iterator[np.ndarray]:
    """Probabilities float32 [3] of each image in turn, averaged over patches (each flipped in all four ways).

    images: as a cache keeps them (`utils.data.cache.load_image`); size: (width, height) of the network's input;
    patches: such as those of `utils.data.transforms.TEST_PATCHES`. UserError when the network puts out NaN.
    """

    def views(image: Pixels) -> np.ndarray:
        return np.stack([take(image, patch, size) for patch in patches])

    steps = FLIPS if flips else FLIPS[:1]
    for each in predict(model, in_order(views, images), precision, batch_size, steps):
        if not np.isfinite(each).all():
            raise UserError(
                "the network's outputs are not finite although its weights are: start afresh with a lower --lr"
            )
        yield each.reshape(-1, each.shape[-1]).mean(axis=0)


def class_probabilities(
    model: nn.Module,
    cache: ImageCache,
    precision: Precision,
    size: tuple[int, int],
    batch_size: int,
    patches: Sequence[Patch],
    flips: bool = False,
) -> np.ndarray:
    """As `classify`, of the images of a cache: float32 [N, 3].

    Of several processes each predicts its share, and all get all.
    """
    indices = distributed.share(len(cache.samples))
    means = classify(model, map(cache.image, indices), precision, size, batch_size, patches, flips)
    found = dict(distributed.gather(list(zip(indices, means, strict=True))))
    return np.stack([found[index] for index in range(len(cache.samples))])


def labels_of(samples: Sequence[Sample]) -> np.ndarray:
    """Class indices [N] of samples that all have a label."""
    return np.array([sample.label for sample in samples])


def examples(probabilities: np.ndarray, labels: np.ndarray) -> list[int]:
    """Of each class the image that is recognised best and the one that is recognised worst, as indices."""
    chosen = []
    for label in range(probabilities.shape[1]):
        (indices,) = np.nonzero(labels == label)
        if len(indices):
            own = probabilities[indices, label]
            chosen += dict.fromkeys((int(indices[own.argmax()]), int(indices[own.argmin()])))
    return chosen
