"""The same photograph in two splits: found by its bytes, by a thumbnail, or by what keypoints it shares."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.data.cache import ImageCache
from utils.data.images import read_image, resized
from utils.data.isic import KNOWN_COPIES, SPLITS, Sample
from utils.data.parallel import in_order
from utils.logger import progress

# Measured on all 2,750 images: thumbnails of two photographs correlate by 0.974 at most (turned or mirrored 0.965),
# re-encoded copies by 0.999 and more. Copies edited in colour and frame go down to 0.927, so from CANDIDATE on the
# details decide: with one affine map, copies share 70 or more keypoints, two photographs 13 at most.
THUMBNAIL, CANDIDATE, COPY, KEYPOINTS = 32, 0.90, 0.99, 30


@dataclass(frozen=True)
class Looks:
    """The images of a split, in order, with what tells them apart: SHA-256 of the files, uint8 [N, THUMBNAIL²]."""

    samples: Sequence[Sample]
    digests: Sequence[str]
    thumbnails: np.ndarray


@dataclass(frozen=True)
class Copy:
    """One photograph in two splits; `similarity` is the correlation of the thumbnails."""

    splits: tuple[str, str]
    files: tuple[Path, Path]
    ids: tuple[str, str]
    similarity: float
    exact: bool  # the same bytes
    turned: bool = False  # by quarters or mirrored, before they resemble each other

    @property
    def known(self) -> bool:
        return any({(a, i), (b, j)} == set(zip(self.splits, self.ids, strict=True)) for a, i, b, j in KNOWN_COPIES)

    @property
    def near(self) -> bool:
        """Whether bytes or thumbnails tell it, as at the start of a run."""
        return self.exact or self.similarity >= COPY

    @property
    def kind(self) -> str:
        kind = "turned or mirrored copy" if self.turned else "near copy" if self.near else "edited copy"
        return "same file" if self.exact else f"{kind}, similarity {self.similarity:.4f}"


def copies_between(caches: Mapping[str, ImageCache]) -> list[Copy]:
    """Copies across the splits by bytes and by thumbnails of the prepared images: 2 s for ISIC 2017.

    Splits may be prepared at different sizes; below 48 pixels thumbnails of copies may differ too much.
    """
    looks = {}
    for split, cache in caches.items():
        found = in_order(_thumbnail, map(cache.frame, range(len(cache.samples))))
        thumbnails = np.array(list(progress(found, "looking for copies", len(cache.samples))))
        looks[split] = Looks(cache.samples, cache.digests, thumbnails)
    return find_copies(looks)


def find_copies(looks: Mapping[str, Looks], *, edited: bool = False) -> list[Copy]:
    """Copies across splits by bytes, or by thumbnail (turned and mirrored too); `edited`: also by shared keypoints.

    Not found: copies that are framed very differently, turned by other angles, or edited and mirrored at once.
    """
    copies, doubtful = [], []
    for a, b in itertools.combinations([s for s in ("extra", *SPLITS) if s in looks and looks[s].samples], 2):
        left, right = looks[a], looks[b]
        ours, others = _normalised(left.thumbnails), _normalised(right.thumbnails)
        upright = ours @ others.T  # [images of a, images of b]
        turned = functools.reduce(np.maximum, (ours @ each.T for each in _turns(others)))
        exact = np.array(left.digests)[:, None] == np.array(right.digests)
        for i, j in np.argwhere(exact | (upright >= CANDIDATE) | (turned >= COPY)):
            one, other = left.samples[i], right.samples[j]
            is_turned = bool(not exact[i, j] and turned[i, j] >= COPY and turned[i, j] > upright[i, j])
            similarity = float((turned if is_turned else upright)[i, j])
            copy = Copy((a, b), (one.image, other.image), (one.id, other.id), similarity, bool(exact[i, j]), is_turned)
            (copies if copy.near else doubtful).append(copy)
    if edited:
        paths = list({path for copy in doubtful for path in copy.files})
        keypoints = dict(zip(paths, in_order(_keypoints, progress(paths, "look-alikes")), strict=True))
        copies += [copy for copy in doubtful if _shared_keypoints(*map(keypoints.get, copy.files)) >= KEYPOINTS]
    return sorted(copies, key=lambda copy: (copy.splits, -copy.similarity, copy.ids))


def _turns(thumbnails: np.ndarray) -> list[np.ndarray]:
    """Thumbnails float32 [N, THUMBNAIL²] turned by one to three quarters, mirrored, and both."""
    square = thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL)
    sides = (square, square[:, :, ::-1])
    turned = [np.rot90(side, quarters, (1, 2)) for side in sides for quarters in range(4)]
    return [images.reshape(thumbnails.shape) for images in turned[1:]]


def thumbnail(path: Path) -> np.ndarray:
    """Of an image file, decoded small: uint8 [THUMBNAIL²]. Raises UserError as `utils.data.images.read_image`."""
    return _thumbnail(read_image(path, (THUMBNAIL, THUMBNAIL)))


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Of pixels uint8 [H, W, 3 or more], RGB first."""
    small = resized(np.asarray(pixels), (THUMBNAIL, THUMBNAIL))
    return cv2.cvtColor(np.ascontiguousarray(small[..., :3]), cv2.COLOR_RGB2GRAY).ravel()


def _normalised(thumbnails: np.ndarray) -> np.ndarray:
    """float32 [N, THUMBNAIL²], each of zero mean and unit length: their products are correlations."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _keypoints(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    grey = cv2.cvtColor(read_image(path, (256, 256)), cv2.COLOR_RGB2GRAY)
    # Contrast is evened out first: edited copies differ in it.
    points, features = cv2.SIFT_create(400).detectAndCompute(cv2.createCLAHE(3, (4, 4)).apply(grey), None)
    return np.float32([point.pt for point in points]), features


def _shared_keypoints(a: Any, b: Any) -> int:
    """How many keypoints of two photographs one affine map brings together within 3 px (RANSAC)."""
    (points_a, features_a), (points_b, features_b) = a, b
    if features_a is None or features_b is None or min(len(points_a), len(points_b)) < 4:
        return 0
    matches = cv2.BFMatcher().knnMatch(features_a, features_b, 2)
    matches = [best for best, second in matches if best.distance < 0.8 * second.distance]
    if len(matches) < 4:
        return 0
    moved, inliers = cv2.estimateAffine2D(
        points_a[[match.queryIdx for match in matches]],
        points_b[[match.trainIdx for match in matches]],
        ransacReprojThreshold=3,
    )
    return 0 if moved is None or abs(np.linalg.det(moved[:, :2])) < 0.4 else int(inliers.sum())
