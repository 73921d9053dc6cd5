"""The same photograph in two splits: found by its bytes, by a thumbnail, or by what keypoints it shares."""

import base64
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from utils import UserError
from utils.data import KNOWN_COPIES, SPLITS, Sample, image_size, read_image
from utils.device import cores
from utils.store import read_index, remembered, sha256, write_index

# Measured on all 2,750 images. Grey thumbnails of two photographs correlate by 0.974 at most, re-encoded copies by
# 0.999 and more. Copies edited in colour and frame go down to 0.927, so from CANDIDATE on the details decide: with
# one affine map, copies share 70 or more keypoints, two photographs 13 at most. Turned by quarters or mirrored, two
# photographs correlate by 0.965 at most.
THUMBNAIL, CANDIDATE, COPY, KEYPOINTS = 32, 0.90, 0.99, 30


@dataclass(frozen=True)
class ImageFacts:
    """What tells an image from others: (width, height), SHA-256 of the file, grey thumbnail."""

    size: tuple[int, int]
    digest: str
    thumbnail: np.ndarray  # float32 [THUMBNAIL²], zero mean, unit length


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


def copies_between(data: Mapping[str, Sequence[Sample]], cache: Path | None = None) -> list[Copy]:
    """Copies across the splits of `data`; what cannot be read is passed over.

    4.4 s on one core for 2,750 images of 256×256. The folder `cache` keeps what was found out about each file, which
    spares decoding originals again; without one nothing is kept.
    """
    files = [sample.image for samples in data.values() for sample in samples]
    entries = remembered(_packed_facts, files, cache and cache / "thumbnails.json", "looking for copies")
    facts = {path: _unpacked_facts(path, entry[-1]) for path, entry in entries.items()}
    readable = {
        split: {s.id: (s.image, facts[s.image]) for s in data.get(split, ()) if facts[s.image]} for split in SPLITS
    }
    index = cache and cache / "keypoints.json"
    shared = read_index(index)
    before = len(shared)
    copies = find_copies(readable, shared)
    if len(shared) > before:
        write_index(index, shared)
    return copies


def find_copies(
    readable: dict[str, dict[str, tuple[Path, ImageFacts]]], shared: dict[str, int] | None = None
) -> list[Copy]:
    """Copies across splits, by bytes, by thumbnail (turned and mirrored too), or by thumbnail and keypoints together.

    readable: by split, then by id, the file and its facts.
    shared: how many keypoints two images share, by `_pair`; used where it is known, and filled.

    Not found: copies framed so differently, or turned by other angles, that their thumbnails do not resemble each
    other; and any whose colours, contrast or frame were edited and that are turned or mirrored too.
    """
    shared = {} if shared is None else shared
    copies, doubtful = [], []
    for a, b in itertools.combinations([split for split in SPLITS if readable[split]], 2):
        left, right = list(readable[a].items()), list(readable[b].items())
        thumbs = [np.stack([facts.thumbnail for _, (_, facts) in side]) for side in (left, right)]
        digests = [np.array([facts.digest for _, (_, facts) in side]) for side in (left, right)]
        exact = digests[0][:, None] == digests[1][None]
        upright = thumbs[0] @ thumbs[1].T  # [images of a, images of b]
        turned = np.full_like(upright, -1)
        for other in _turns(thumbs[1]):
            np.maximum(turned, thumbs[0] @ other.T, out=turned)
        for i, j in np.argwhere(exact | (upright >= CANDIDATE) | (turned >= COPY)):
            (id_a, (path_a, _)), (id_b, (path_b, _)) = left[i], right[j]
            as_it_is = bool(exact[i, j] or upright[i, j] >= max(COPY, turned[i, j]))
            is_turned = bool(not as_it_is and turned[i, j] >= COPY)
            similarity = float((turned if is_turned else upright)[i, j])
            copy = Copy((a, b), (path_a, path_b), (id_a, id_b), similarity, bool(exact[i, j]), is_turned)
            (copies if as_it_is or is_turned else doubtful).append(copy)
    facts = {path: facts for images in readable.values() for path, facts in images.values()}
    new = [copy for copy in doubtful if not isinstance(shared.get(_pair(copy, facts)), int)]
    keypoints = read_all(_keypoints, {path for copy in new for path in copy.files}, "look-alikes")
    for copy in new:
        shared[_pair(copy, facts)] = _shared_keypoints(*(keypoints[path] for path in copy.files))
    copies += [copy for copy in doubtful if shared[_pair(copy, facts)] >= KEYPOINTS]
    return sorted(copies, key=lambda copy: (copy.splits, -copy.similarity, copy.ids))


def _pair(copy: Copy, facts: Mapping[Path, ImageFacts]) -> str:
    return " ".join(facts[path].digest[:32] for path in copy.files)


def _turns(thumbnails: np.ndarray) -> list[np.ndarray]:
    """Thumbnails float32 [N, THUMBNAIL²] turned by one to three quarters, mirrored, and both."""
    square = thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL)
    sides = (square, square[:, :, ::-1])
    turned = [np.rot90(side, quarters, (1, 2)) for side in sides for quarters in range(4)]
    return [images.reshape(thumbnails.shape) for images in turned[1:]]


def image_facts(path: Path) -> ImageFacts:
    """Decode an image, small, and say what it is. Raises UserError when it is truncated or no image."""
    return ImageFacts(image_size(path), sha256(path), _normalised(_grey(path, THUMBNAIL)))


def _grey(path: Path, side: int) -> np.ndarray:
    return cv2.cvtColor(read_image(path, (side, side)), cv2.COLOR_RGB2GRAY)


def _normalised(grey: np.ndarray) -> np.ndarray:
    values = grey.astype(np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _packed_facts(path: Path) -> list | None:
    """`image_facts` as JSON can hold them; None for what cannot be read, which is refused where it is needed."""
    try:
        grey = _grey(path, THUMBNAIL)
        return [*image_size(path), sha256(path), base64.b64encode(grey).decode()]
    except UserError:
        return None


def _unpacked_facts(path: Path, packed: list | None) -> ImageFacts | None:
    if packed is None:
        return None
    try:
        width, height, digest, grey = packed
        grey = np.frombuffer(base64.b64decode(grey), np.uint8).reshape(THUMBNAIL, THUMBNAIL)
        return ImageFacts((width, height), digest, _normalised(grey))
    except (TypeError, ValueError):  # not what `_packed_facts` makes today
        return image_facts(path)


def _keypoints(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    grey = _grey(path, 256)
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
        results = pool.map(one, paths)
        return dict(zip(paths, tqdm(results, desc=what, total=len(paths), disable=None, leave=False), strict=True))
