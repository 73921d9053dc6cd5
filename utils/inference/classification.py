"""The classification task: probabilities of the three classes from views of a photograph, scored and explained."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from utils import UserError, distributed
from utils.data.cache import ImageCache
from utils.data.images import image_size
from utils.data.isic import CLASSES, Sample
from utils.data.transforms import CENTER, FLIPS, Patch, TrainTransforms, take
from utils.device import Precision
from utils.inference.network import predict


def cache_sizes(
    samples: Sequence[Sample], size: tuple[int, int], views: TrainTransforms
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(width, height) at which to cache images for a network's input `size`, and their center where it is finer then.

    Neither is larger than in the largest original.
    """
    originals = [image_size(sample.image) for sample in samples]
    largest = [max(sides) for sides in zip(*originals, strict=True)]
    axes = [*zip(size, largest, strict=True)]
    stored = tuple(max(side, min(round(views.stored_scale * side), most)) for side, most in axes)
    if views.center_scale is None:
        return stored, None
    center = tuple(min(round(views.center_scale * side), int(CENTER[2] * most)) for side, most in axes)
    finer = all(inner > CENTER[2] * outer for inner, outer in zip(center, stored, strict=True))
    return stored, center if finer else None


def balanced_weights(labels: Sequence[int]) -> tuple[float, ...]:
    """Weights that give every class the same share of the loss: N / (classes · images of the class)."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    if not counts.all():
        raise UserError(f"--class-weights balanced: no training image of {CLASSES[int(counts.argmin())]}")
    return tuple(round(float(weight), 4) for weight in len(labels) / (len(CLASSES) * counts))


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

    size: (width, height) of the network's input; patches: such as those of `utils.data.transforms.TEST_PATCHES`. Of several processes
    each predicts its share, and all get all.
    """
    steps = FLIPS if flips else FLIPS[:1]
    indices = distributed.share(len(cache.samples))

    def inputs() -> Iterator[np.ndarray]:
        for index in indices:
            for patch in patches:
                view = take(cache.image(index), patch, size)
                yield from (view[::rows, ::columns] for rows, columns in steps)

    each = np.array(list(predict(model, inputs(), precision, batch_size)), dtype=np.float32)
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
