"""The segmentation task: masks from a network, at the size of the originals, scored and written."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import nn

from utils import distributed
from utils.data.cache import ImageCache
from utils.data.images import image_size, read_mask
from utils.data.isic import Sample
from utils.data.parallel import in_order
from utils.data.transforms import FLIPS
from utils.device import Precision
from utils.evaluation.segmentation import Counts, confusion_counts
from utils.files import written_whole
from utils.inference.network import predict

LESION = 1  # index of the lesion among the classes background, lesion


def enlarged(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lesion probability float [h, w] → [height, width] of size = (width, height): bilinear, over the whole frame."""
    if probability.shape[::-1] == tuple(size):
        return probability
    return cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR)


def lesion_mask(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lesion probability float [h, w] → bool mask [height, width] of size = (width, height): enlarged, above 0.5."""
    return enlarged(probability, size) > 0.5


def outline(
    model: nn.Module, frames: Iterable[np.ndarray], precision: Precision, batch_size: int, flips: bool = False
) -> Iterator[np.ndarray]:
    """Lesion probability float32 [h, w] of each image in turn, whole frames uint8 [h, w, 3] at the network's size.

    flips: average over the frame flipped in all four ways.
    """
    steps = FLIPS if flips else FLIPS[:1]
    for (each,) in predict(model, (frame[None] for frame in frames), precision, batch_size, steps):
        lesions = [one[LESION][::rows, ::columns] for one, (rows, columns) in zip(each, steps, strict=True)]
        yield np.mean(lesions, axis=0)  # a copy: the whole batch would live as long as a view of it


def predict_lesions(
    model: nn.Module,
    cache: ImageCache,
    precision: Precision,
    batch_size: int,
    flips: bool = False,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """As `outline`, of all images of a cache or of `indices`: yields (index, probability)."""
    indices = range(len(cache.samples)) if indices is None else indices
    frames = (cache.frame(index)[..., :3] for index in indices)
    yield from zip(indices, outline(model, frames, precision, batch_size, flips), strict=True)


class TrueMasks:
    """True masks at their own size, read once and kept as compressed bits (tens of KB for millions of pixels)."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, int], bytes]] = {}

    def read(self, path: Path) -> np.ndarray:
        """The mask as bool [H, W]. Raises UserError as `utils.data.images.read_mask`."""
        if path not in self._kept:
            mask = read_mask(path)
            self._kept[path] = mask.shape, zlib.compress(np.packbits(mask), 1)
        (height, width), content = self._kept[path]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(content), np.uint8), count=height * width)
        return bits.reshape(height, width).view(bool)


def score(
    model: nn.Module,
    cache: ImageCache,
    precision: Precision,
    batch_size: int,
    flips: bool = False,
    masks: TrueMasks | None = None,
    look: Callable[[int, np.ndarray], object] = lambda *_: None,
) -> Counts:
    """Compare the predicted with the true masks at the true masks' own size; images without one are passed over.

    Only counts are kept; a full-size mask lives as long as its comparison, and few images are ahead of theirs. Of
    several processes each scores its share, and all get all counts. `masks` spares decoding the same masks next time.
    look: gets index and probability of every image of the share, in threads.
    """
    with_mask = [index for index, sample in enumerate(cache.samples) if sample.mask]
    indices = [with_mask[place] for place in distributed.share(len(with_mask))]

    def compare(item: tuple[int, np.ndarray]) -> tuple[str, tuple[int, int, int, int]]:
        index, probability = item
        look(index, probability)
        sample = cache.samples[index]
        return sample.id, _compare(probability, masks.read(sample.mask) if masks else read_mask(sample.mask))

    probabilities = predict_lesions(model, cache, precision, batch_size, flips, indices)
    found = dict(distributed.gather(list(in_order(compare, probabilities))))
    return {cache.samples[index].id: found[cache.samples[index].id] for index in with_mask}


def _compare(probability: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, int]:
    """Pixel counts of a prediction against a true mask, at that mask's own size."""
    return confusion_counts(lesion_mask(probability, truth.shape[::-1]), truth)


def write_masks(
    model: nn.Module, cache: ImageCache, precision: Precision, batch_size: int, prefix: Path, flips: bool = False
) -> Counts:
    """Write PREFIX_masks.zip and PREFIX_probabilities.zip, with one PNG of each image.

    `<id>_segmentation.png` holds 0 and 255, at the image's own size; `<id>.png` the lesion probability × 255, rounded,
    at the network's size. Returns the counts of the images that have a true mask, as `score` does, from the same
    predictions.
    """
    counts = {}

    def finish(item: tuple[int, np.ndarray]) -> tuple[Sample, bytes, bytes, tuple[int, int, int, int] | None]:
        index, probability = item
        sample = cache.samples[index]
        mask = png(255 * lesion_mask(probability, image_size(sample.image)))
        compared = _compare(probability, read_mask(sample.mask)) if sample.mask else None
        return sample, mask, png(np.rint(255 * probability)), compared

    with zip_file(f"{prefix}_masks.zip") as masks, zip_file(f"{prefix}_probabilities.zip") as maps:
        probabilities = predict_lesions(model, cache, precision, batch_size, flips)
        for sample, mask, probability, compared in in_order(finish, probabilities):
            add_file(masks, f"{sample.id}_segmentation.png", mask)
            add_file(maps, f"{sample.id}.png", probability)
            if compared:
                counts[sample.id] = compared
    return counts


@contextmanager
def zip_file(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """A zip file to fill, which is at `path` once it is whole."""
    with written_whole(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield archive


def add_file(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Of one time stamp: the same content gives the same archive."""
    archive.writestr(zipfile.ZipInfo(name, (2017, 1, 1, 0, 0, 0)), content)


def png(grey: np.ndarray) -> bytes:
    """Grey values [H, W] from 0 to 255 as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(content, "PNG", optimize=True)
    return content.getvalue()
