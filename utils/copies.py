"""The same photograph in two splits: found by its bytes, by a thumbnail, or by what keypoints it shares."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils import UserError
from utils.data import KNOWN_COPIES, SPLITS, image_size, read_image

# Measured on all 2,750 images. Grey thumbnails of two photographs correlate by 0.974 at most, re-encoded copies by
# 0.999 and more. Copies edited in colour and frame go down to 0.927, so from CANDIDATE on the details decide: with
# one affine map, copies share 70 or more keypoints, two photographs 13 at most.
THUMBNAIL, CANDIDATE, COPY, KEYPOINTS = 32, 0.90, 0.99, 30


@dataclass(frozen=True)
class ImageFacts:
    """What tells an image from others: (width, height), SHA-256 of the file, grey thumbnail."""

    size: tuple[int, int]
    digest: bytes
    thumbnail: np.ndarray  # float32 [THUMBNAIL²], zero mean, unit length


@dataclass(frozen=True)
class Copy:
    """One photograph in two splits. `similarity` is the correlation of the thumbnails; `exact`: the same bytes."""

    splits: tuple[str, str]
    files: tuple[Path, Path]
    ids: tuple[str, str]
    similarity: float
    exact: bool

    @property
    def known(self) -> bool:
        return any({(a, i), (b, j)} == set(zip(self.splits, self.ids, strict=True)) for a, i, b, j in KNOWN_COPIES)


def find_copies(readable: dict[str, dict[str, tuple[Path, ImageFacts]]]) -> list[Copy]:
    """Copies across splits, by bytes, by thumbnail, or by thumbnail and keypoints together.

    readable: by split, then by id, the file and its facts.

    Not found: copies turned, mirrored or framed so differently that their thumbnails do not resemble each other.
    """
    copies, doubtful = [], []
    for a, b in itertools.combinations([split for split in SPLITS if readable[split]], 2):
        left, right = list(readable[a].items()), list(readable[b].items())
        thumbs = [np.stack([facts.thumbnail for _, (_, facts) in side]) for side in (left, right)]
        digests = [np.array([facts.digest for _, (_, facts) in side]) for side in (left, right)]
        exact = digests[0][:, None] == digests[1][None]
        similarity = thumbs[0] @ thumbs[1].T  # [images of a, images of b]
        for i, j in np.argwhere(exact | (similarity >= CANDIDATE)):
            (id_a, (path_a, _)), (id_b, (path_b, _)) = left[i], right[j]
            copy = Copy((a, b), (path_a, path_b), (id_a, id_b), float(similarity[i, j]), bool(exact[i, j]))
            (copies if exact[i, j] or similarity[i, j] >= COPY else doubtful).append(copy)
    keypoints = read_all(_keypoints, {path for copy in doubtful for path in copy.files}, "look-alikes")
    copies += [copy for copy in doubtful if _shared_keypoints(*(keypoints[path] for path in copy.files)) >= KEYPOINTS]
    return sorted(copies, key=lambda copy: (copy.splits, -copy.similarity, copy.ids))


def image_facts(path: Path) -> ImageFacts:
    """Decode an image, small, and say what it is. Raises UserError when it is truncated or no image."""
    grey = cv2.cvtColor(read_image(path, (THUMBNAIL, THUMBNAIL)), cv2.COLOR_RGB2GRAY).astype(np.float32).ravel()
    grey -= grey.mean()
    digest = hashlib.sha256(path.read_bytes()).digest()
    return ImageFacts(image_size(path), digest, grey / max(float(np.linalg.norm(grey)), 1e-6))


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


def read_all(read: Callable[[Path], Any], paths: Iterable[Path], what: str) -> dict[Path, Any]:
    """`read(path)` for each path on all cores (decoding runs outside the interpreter lock); a UserError is a value."""

    def one(path: Path) -> Any:
        try:
            return read(path)
        except UserError as error:
            return error

    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(one, paths)
        return dict(zip(paths, tqdm(results, desc=what, total=len(paths), disable=None, leave=False), strict=True))
