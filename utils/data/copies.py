"""The same photograph in two splits: found by its bytes, by a thumbnail, or by what keypoints it shares."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils import UserError
from utils.data.cache import ImageCache, in_order, read_index, write_index
from utils.data.images import read_image, resized
from utils.data.isic import KNOWN_COPIES, SPLITS, Sample
from utils.device import cores
from utils.logger import progress

# Measured on all 2,750 images. Grey thumbnails of two photographs correlate by 0.974 at most, re-encoded copies by
# 0.999 and more. Copies edited in colour and frame go down to 0.927, so from CANDIDATE on the details decide: with
# one affine map, copies share 70 or more keypoints, two photographs 13 at most. Turned by quarters or mirrored, two
# photographs correlate by 0.965 at most.
THUMBNAIL, CANDIDATE, COPY, KEYPOINTS = 32, 0.90, 0.99, 30
SMALLEST = 96  # pixels: below, thumbnails are made of the originals. Splits are prepared at different sizes
SEARCH_VERSION = 1  # raise it when other copies are found
BLOCK = 4096  # images of a split that are compared at a time


@dataclass(frozen=True)
class Looks:
    """The images of a split, in order, with what tells them apart: SHA-256 of the files, uint8 [N, THUMBNAIL²]."""

    samples: Sequence[Sample]
    digests: Sequence[str]
    thumbnails: np.ndarray


@dataclass(frozen=True)
class Copy:
    """One photograph in two splits. `similarity` is the correlation of the thumbnails; `exact`: the same bytes.

    turned: by quarters or mirrored, before they resemble each other.
    """

    splits: tuple[str, str]
    files: tuple[Path, Path]
    ids: tuple[str, str]
    similarity: float
    exact: bool
    turned: bool = False

    @property
    def known(self) -> bool:
        return any({(a, i), (b, j)} == set(zip(self.splits, self.ids, strict=True)) for a, i, b, j in KNOWN_COPIES)

    @property
    def kind(self) -> str:
        near = "turned or mirrored copy" if self.turned else "near copy"
        return "same file" if self.exact else f"{near}, similarity {self.similarity:.4f}"


def copies_between(caches: Mapping[str, ImageCache]) -> list[Copy]:
    """Copies across the splits, by the prepared images: of the originals only those of look-alikes are decoded, or all
    where images are prepared smaller than SMALLEST.

    What is found is kept in `copies.json` beside the caches, so that the same images are searched once.
    """
    splits = [split for split in SPLITS if split in caches]
    if len(splits) < 2:
        return []
    folder = caches[splits[0]].path.parent
    index = folder / "copies.json"
    key = " ".join([f"v{SEARCH_VERSION}", *(f"{split} {caches[split].path.stem}" for split in splits)])
    known = read_index(index)
    try:
        return [_unpacked(entry, caches) for entry in known[key]]
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError):  # not there, or damaged
        pass
    small = min(min(caches[split].size) for split in splits) < SMALLEST
    copies = find_copies({split: _looks(caches[split], small) for split in splits})
    known = {
        key: entries
        for key, entries in known.items()
        if all((folder / f"{stem}.npy").exists() for stem in key.split()[2::2])
    }
    write_index(index, known | {key: [_packed(copy, caches) for copy in copies]})
    return copies


def _packed(copy: Copy, caches: Mapping[str, ImageCache]) -> list:
    places = [
        next(place for place, sample in enumerate(caches[split].samples) if sample.id == id_)
        for split, id_ in zip(copy.splits, copy.ids, strict=True)
    ]
    return [*copy.splits, *places, copy.similarity, copy.exact, copy.turned]


def _unpacked(entry: list, caches: Mapping[str, ImageCache]) -> Copy:
    a, b, i, j, similarity, exact, turned = entry
    first, second = caches[a].samples[i], caches[b].samples[j]
    return Copy((a, b), (first.image, second.image), (first.id, second.id), float(similarity), exact, turned)


def _looks(cache: ImageCache, of_originals: bool) -> Looks:
    thumbnails = np.empty((len(cache.samples), THUMBNAIL**2), np.uint8)
    with ThreadPoolExecutor(cores()) as pool:
        if of_originals:
            found = in_order(pool, thumbnail, (sample.image for sample in cache.samples))
        else:
            found = in_order(pool, _thumbnail, cache.pixels())
        for place, each in enumerate(progress(found, "looking for copies", len(thumbnails))):
            thumbnails[place] = each
    return Looks(cache.samples, cache.digests, thumbnails)


def find_copies(looks: Mapping[str, Looks]) -> list[Copy]:
    """Copies across splits, by bytes, by thumbnail (turned and mirrored too), or by thumbnail and keypoints together.

    Not found: copies framed so differently, or turned by other angles, that their thumbnails do not resemble each
    other; and any whose colours, contrast or frame were edited and that are turned or mirrored too.
    """
    copies, doubtful = [], []
    for a, b in itertools.combinations([split for split in SPLITS if split in looks and looks[split].samples], 2):
        left, right = looks[a], looks[b]
        thumbnails = _normalised(right.thumbnails)
        places: dict[str, list[int]] = {}
        for j, digest in enumerate(right.digests):
            places.setdefault(digest, []).append(j)
        for start in range(0, len(left.samples), BLOCK):
            block = _normalised(left.thumbnails[start : start + BLOCK])
            upright = block @ thumbnails.T  # [images of the block, images of b]
            turned = np.full_like(upright, -1)
            for other in _turns(thumbnails):
                np.maximum(turned, block @ other.T, out=turned)
            exact = np.zeros(upright.shape, bool)
            for i, digest in enumerate(left.digests[start : start + BLOCK]):
                exact[i, places.get(digest, [])] = True
            for i, j in np.argwhere(exact | (upright >= CANDIDATE) | (turned >= COPY)):
                one, other = left.samples[start + i], right.samples[j]
                as_it_is = bool(exact[i, j] or upright[i, j] >= max(COPY, turned[i, j]))
                is_turned = bool(not as_it_is and turned[i, j] >= COPY)
                similarity = float((turned if is_turned else upright)[i, j])
                files, ids = (one.image, other.image), (one.id, other.id)
                copy = Copy((a, b), files, ids, similarity, bool(exact[i, j]), is_turned)
                (copies if as_it_is or is_turned else doubtful).append(copy)
    keypoints = read_all(_keypoints, {path for copy in doubtful for path in copy.files}, "look-alikes")
    copies += [copy for copy in doubtful if _shared_keypoints(*(keypoints[path] for path in copy.files)) >= KEYPOINTS]
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


def read_all(read: Callable[[Path], Any], paths: Iterable[Path], what: str) -> dict[Path, Any]:
    """`read(path)` for each path on all cores (decoding runs outside the interpreter lock); a UserError is a value."""

    def one(path: Path) -> Any:
        try:
            return read(path)
        except UserError as error:
            return error

    paths = list(paths)
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(paths, progress(pool.map(one, paths), what, len(paths)), strict=True))
