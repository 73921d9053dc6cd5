"""What networks are trained on and scored by: augmented images, and patches of photographs for classification.

Zhang et al. 2019 (doi 10.1109/TMI.2019.2893944) train on rectangles at 1/5, 2/5, 3/5 and 4/5 of the image's sides,
drawn from its central part, and average the probabilities of nine of them to score an image. A patch is given here as
(left, top, width, height) in shares of the frame; taken out, it is resized to the network's input. It contains the
middle of the image: its own centre lies in the central fifth of either side, so that the largest just stays inside.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.data.images import resized
from utils.data.isic import Sample

Patch = tuple[float, float, float, float]
Size = tuple[int, int]  # (width, height), pixels
Sizes = tuple[Size, Size | None]  # at which an image is kept, and its CENTER where that is kept besides
SCALES = (0.8, 0.6, 0.4, 0.2)
CENTRAL = 0.2  # share of either side from which a patch's centre is drawn
FRAME: Patch = (0.0, 0.0, 1.0, 1.0)
# An image uint8 [H, W, 3], or one and its CENTER at a finer resolution.
Pixels = np.ndarray | tuple[np.ndarray, np.ndarray]
Transforms = Callable[[Pixels, Sample, int], tuple[np.ndarray, Any]]  # (cached pixels, sample, seed) → image, target


def patch_at(scale: float, x: float = 0.5, y: float = 0.5) -> Patch:
    """The patch of `scale` (share of the sides, in (0, 1]) whose centre lies at x, y (shares from the left and top)."""
    return (x - scale / 2, y - scale / 2, scale, scale)


CENTER = patch_at(0.4)  # holds every patch of 1/5 of the sides


def draw_patch(rng: np.random.Generator) -> Patch:
    """A random patch from the central part, of one of SCALES, each as likely."""
    scale = float(rng.choice(SCALES))
    x, y = 0.5 + CENTRAL * (rng.random(2) - 0.5)
    return patch_at(scale, float(x), float(y))


# What an image is scored by. "9": nine patches, drawn once as the training patches are, the four scales in turn;
# "1": the whole frame.
TEST_PATCHES: dict[str, tuple[Patch, ...]] = {
    "9": (
        (0.188, 0.107, 0.8, 0.8), (0.167, 0.214, 0.6, 0.6), (0.292, 0.218, 0.4, 0.4),
        (0.414, 0.371, 0.2, 0.2), (0.043, 0.100, 0.8, 0.8), (0.293, 0.111, 0.6, 0.6),
        (0.225, 0.360, 0.4, 0.4), (0.478, 0.345, 0.2, 0.2), (0.087, 0.090, 0.8, 0.8),
    ),
    "1": (FRAME,),
}  # fmt: skip


FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # steps through rows and columns


def in_center(patch: Patch) -> Patch | None:
    """A patch of the frame as one of its CENTER; None where that does not hold it."""
    left, top = ((patch[axis] - CENTER[axis]) / CENTER[2] for axis in (0, 1))
    inner = (left, top, patch[2] / CENTER[2], patch[3] / CENTER[3])
    inside = min(left, top) > -1e-6 and max(left + inner[2], top + inner[3]) < 1 + 1e-6
    return inner if inside else None


def _cut(pixels: Pixels, patch: Patch) -> np.ndarray:
    """The pixels of a patch, of the finer center where that holds it: uint8 [h, w, 3], no copy."""
    if isinstance(pixels, tuple):
        frame, center = pixels
        inner = in_center(patch)
        pixels, patch = (center, inner) if inner else (frame, patch)
    height, width = pixels.shape[:2]
    left, right = (round(width * share) for share in (patch[0], patch[0] + patch[2]))
    top, bottom = (round(height * share) for share in (patch[1], patch[1] + patch[3]))
    return pixels[max(0, top) : bottom, max(0, left) : right]


def take(pixels: Pixels, patch: Patch, size: Size) -> np.ndarray:
    """A patch of an image, of its finer center where that holds it, resized to `size` = (width, height).

    uint8 [height, width, 3]; by area averaging or linear.
    """
    return resized(_cut(pixels, patch), size)


TRAIN_SCALE = 1.5  # training images are cached at 1.5 × the network's size: a crop of half the area stays sharp


def cache_size(size: Size) -> Size:
    """(width, height) at which to cache images and masks that a segmenter with this input is trained on."""
    return round(size[0] * TRAIN_SCALE), round(size[1] * TRAIN_SCALE)


def _with_noise(image: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """uint8 of any shape plus Gaussian noise: whole numbers, to which the sum would be rounded."""
    noise = np.empty(image.size, np.int16)
    cv2.setRNGSeed(seed)
    cv2.randn(noise, 0, deviation)
    return cv2.add(image, noise.reshape(image.shape), dtype=cv2.CV_8U)


class FrameTransforms:
    """Training images for classification: random resized crop, flips, rotation by up to 30°; the target is the label.

    The crop has half of the frame to all of it. size: (width, height) of the network's input.
    """

    def __init__(self, size: Size) -> None:
        import albumentations as A  # imports slowly, and prediction needs none of it

        width, height = size
        ratio = (0.8 * (width / height), 1.25 * (width / height))
        nearest = cv2.INTER_NEAREST_EXACT  # the default shifts the mask by up to half a pixel
        steps = [
            A.RandomResizedCrop((height, width), scale=(0.5, 1.0), ratio=ratio, mask_interpolation=nearest),
            A.HorizontalFlip(),
            A.VerticalFlip(),
            A.Rotate(30, border_mode=cv2.BORDER_REFLECT_101),
        ]
        self.transforms = A.Compose(steps)

    def __call__(self, pixels: np.ndarray, sample: Sample, seed: int) -> tuple[np.ndarray, int]:
        """Cached pixels uint8 [h, w, 3] → image uint8 [H, W, 3] and class index; `seed` decides all draws."""
        drawn, _ = self.drawn(seed, image=cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA))
        return drawn["image"], sample.label

    def drawn(self, seed: int, **planes: np.ndarray) -> tuple[dict[str, np.ndarray], np.random.Generator]:
        """The first three channels of an image of four (OpenCV turns four faster than three), and the mask
        with it, after all steps; and the generator, to draw more from."""
        # One state that all transforms draw from in turn. set_random_seed would give each its own generator with the
        # same seed, and an image would be flipped one way exactly when it is flipped the other way.
        rng = np.random.default_rng(seed)
        self.transforms.set_random_state(rng, random.Random(seed))
        drawn = self.transforms(**planes)
        return drawn | {"image": cv2.cvtColor(drawn["image"], cv2.COLOR_RGBA2RGB)}, rng


class SegmentationTransforms(FrameTransforms):
    """Training images for segmentation: as `FrameTransforms`, and Gaussian noise; the target is the mask.

    Attributes:
        noisy: share of the images that get noise, of a deviation between 1 and 5 % of the range of values.
    """

    noisy = 0.3

    def __call__(self, pixels: np.ndarray, sample: Sample, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Cached pixels uint8 [h, w, 4] → image uint8 [H, W, 3], mask uint8 [H, W] of 0 and 1; `seed` decides all."""
        # OpenCV takes a channel apart in a fiftieth of NumPy's time.
        drawn, rng = self.drawn(seed, image=np.ascontiguousarray(pixels), mask=cv2.extractChannel(pixels, 3))
        image = drawn["image"]
        if rng.random() < self.noisy:
            image = _with_noise(image, 255 * rng.uniform(0.01, 0.05), int(rng.integers(2**31)))
        return image, drawn["mask"]


class PatchTransforms:
    """Training images for classification: a random patch, flips, rotation by up to 10°; the target is the label.

    size: (width, height) of the network's input.
    """

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(self, pixels: Pixels, sample: Sample, seed: int) -> tuple[np.ndarray, int]:
        """Cached pixels → image uint8 [H, W, 3] and class index; `seed` decides all draws."""
        rng = np.random.default_rng(seed)
        patch = cv2.cvtColor(_cut(pixels, draw_patch(rng)), cv2.COLOR_RGB2RGBA)
        # Resizing, flips and rotation in one warp about the middle: half the time of one after the other, and nearer
        # to an exact mean over each pixel. From an output pixel to where it comes from in the patch.
        own, size = (np.array(shape) for shape in (patch.shape[1::-1], self.size))
        turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-10, 10), 1)[:, :2] * rng.choice((-1, 1), 2)
        turn = turn.T * (own / size)[:, None]
        warp = np.column_stack([turn, (own - 1) / 2 - turn @ ((size - 1) / 2)])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(patch, warp, self.size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB), sample.label


@dataclass(frozen=True)
class TrainTransforms:
    """What a classifier is trained on, and what goes with it.

    Attributes:
        build: training transforms for a (width, height) of the network's input.
        cached_scale: images are cached at so many times the network's size.
        center_scale: and their CENTER once more, at so many times that size.
        selection, selection_flips: what the best epoch is chosen by. One patch alone is too noisy for that.
        frame_scale: the whole frame shows things as large as the training images do at so many times the input's size.
    """

    build: Callable[[Size], Transforms]
    cached_scale: float
    center_scale: float | None
    selection: tuple[Patch, ...]
    selection_flips: bool
    frame_scale: int


# Against patches of 17 originals (1,456 to 2,816 px wide, input 224×224), the cached ones keep in the finest octave all
# the energy at 4/5 and 2/5, 87 % at 3/5, and at 1/5 all of it thanks to the center (30 % without); medians.
TRAIN_TRANSFORMS: dict[str, TrainTransforms] = {
    "patches": TrainTransforms(PatchTransforms, 2.5, 2.0, tuple(patch_at(scale) for scale in SCALES), False, 2),
    "frame": TrainTransforms(FrameTransforms, 1.5, None, (FRAME,), True, 1),
}


def cache_sizes(original: Size, size: Size, transforms: TrainTransforms) -> Sizes:
    """At which (width, height) to keep an `original` of a classifier whose network takes `size`, and its center.

    Never finer than the original, unless the network's input is; the center is None where it would not be finer than
    the image.
    """
    axes = [*zip(size, original, strict=True)]
    cached = tuple(max(side, min(round(transforms.cached_scale * side), most)) for side, most in axes)
    if transforms.center_scale is None:
        return cached, None
    center = tuple(min(round(transforms.center_scale * side), int(CENTER[2] * most)) for side, most in axes)
    finer = all(inner > CENTER[2] * outer for inner, outer in zip(center, cached, strict=True))
    return cached, center if finer else None
