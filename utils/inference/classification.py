"""Probabilities of the three classes from a network, averaged over patches of a photograph."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from torch import nn

from utils import UserError, distributed
from utils.data.cache import ImageCache
from utils.data.isic import CLASSES, Sample
from utils.data.parallel import in_order
from utils.data.transforms import FLIPS, Patch, take
from utils.device import Precision
from utils.inference.network import predict


def class_probabilities(
    model: nn.Module,
    cache: ImageCache,
    precision: Precision,
    size: tuple[int, int],
    batch_size: int,
    patches: Sequence[Patch],
    flips: bool = False,
) -> np.ndarray:
    """Probabilities float32 [N, 3] of the images of a cache, averaged over patches (each flipped in all four ways).

    size: (width, height) of the network's input; patches: such as those of `utils.data.transforms.TEST_PATCHES`.
    Of several processes each predicts its share, and all get all.
    """
    steps = FLIPS if flips else FLIPS[:1]
    indices = distributed.share(len(cache.samples))

    def views(index: int) -> list[np.ndarray]:
        return [take(cache.image(index), patch, size) for patch in patches]

    images = chain.from_iterable(in_order(views, indices))
    each = np.array(list(predict(model, images, precision, batch_size, steps)), dtype=np.float32)
    if not np.isfinite(each).all():
        raise UserError("the network's outputs are not finite although its weights are: start afresh with a lower --lr")
    means = each.reshape(len(indices), -1, len(CLASSES)).mean(axis=1)
    found = dict(distributed.gather(list(zip(indices, means, strict=True))))
    return np.stack([found[index] for index in range(len(cache.samples))])


def labels_of(samples: Sequence[Sample]) -> np.ndarray:
    """Class indices [N] of samples that all have a label."""
    return np.array([sample.label for sample in samples])


def examples(probabilities: np.ndarray, labels: np.ndarray) -> list[int]:
    """Of each class the image that is recognised best and the one that is recognised worst, as indices."""
    chosen = []
    for label in range(len(CLASSES)):
        (indices,) = np.nonzero(labels == label)
        if len(indices):
            own = probabilities[indices, label]
            chosen += dict.fromkeys((int(indices[own.argmax()]), int(indices[own.argmin()])))
    return chosen
