"""Procedural dermoscopy: one photograph of a skin lesion with its mask and its class, drawn from a seed.

A lesion is drawn as light that comes back through skin: pigment and blood take away more blue and green than red
(Beer–Lambert). The classes differ in what dermatologists look at (symmetry, border, colours, network, milia-like
cysts), each to a varying degree, so that they overlap as the real ones do. Uneven light, hair and noise get in the way.
"""

import math

import cv2
import numpy as np

SIZE = (384, 288)
MELANOMA, KERATOSIS, NEVUS = range(3)  # indices into utils.data.isic.CLASSES
# Each split owns a range of indices: no image is in two splits, and more training images leave the test set as it is.
SPLIT_STRIDE = 100_000
WORK_SIDE = 600  # px; drawn with at most this short side, then enlarged
MELANIN = np.float32((0.30, 0.72, 1.0))  # absorption in R, G, B for one unit of pigment
BLOOD = np.float32((0.10, 0.75, 0.62))
SKIN_TONES = np.float32([(230, 198, 190), (224, 192, 160), (216, 146, 136), (236, 228, 222), (160, 116, 92)])
VEIL, WAX, CYST = np.float32([(92, 104, 128), (164, 134, 96), (248, 240, 222)])
ROUGH, SOFT = (0.08, 0.06, 0.05), (0.06, 0.02, 0.08)  # of each class's border, in radii of the lesion


def draw_lesion(seed: int, index: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray, int]:
    """One photograph with its truth: a pure function of the arguments.

    size is (width, height). Returns the image uint8 [H, W, 3] RGB, the mask uint8 [H, W] of 0 and 255 (one
    connected region without holes), and the label, an index into CLASSES.
    """
    rng, label = np.random.default_rng([seed, index]), draw_label(seed, index)
    shrink = min(1.0, WORK_SIDE / min(size))
    width, height = (round(shrink * side) for side in size)
    # Lengths are in units of the image's short side, the origin is its centre; every field is float32 [H, W].
    axes = (np.arange(side, dtype=np.float32) + 0.5 - side / 2 for side in (width, height))
    x, y = np.meshgrid(*(axis / min(width, height) for axis in axes))
    typical = rng.beta(3, 1.6)  # how plainly the class shows; 0 = hardly

    depth, radius = _outline(rng, x, y, ROUGH[label] * (0.4 + typical))
    image = np.full((height, width, 3), rng.dirichlet(np.full(len(SKIN_TONES), 0.35)) @ SKIN_TONES, np.float32)
    image *= _light_left(0.05 * _noise(rng, x, 4) + 0.03 * _noise(rng, x, 30), 0.03 * _noise(rng, x, 8))
    (_melanoma, _keratosis, _nevus)[label](rng, x, y, depth, radius, typical, image)
    image *= np.exp(rng.normal(0, 0.1) + rng.normal(0, (0.04, 0.02, 0.04)))  # exposure, colour cast
    image *= (1 + rng.normal(0, 0.1) * x - rng.uniform(0, 0.4) * (x**2 + y**2))[..., None]  # uneven light, dark corners
    if (blur := rng.uniform(-0.005, 0.005) * min(width, height)) > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = cv2.resize(np.clip(image, 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
    _add_hair(rng, image)
    grain = np.rint(rng.uniform(1, 5) * rng.standard_normal(image.shape[:2], np.float32)).astype(np.int16)
    image = cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    return image, 255 * _largest_region(cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR) > 0), label


def _noise(rng: np.random.Generator, like: np.ndarray, bumps: float) -> np.ndarray:
    """Smooth noise of about unit variance with so many bumps along the short side."""
    height, width = like.shape
    step = max(min(height, width) / bumps, 1.0)
    grid = rng.standard_normal((math.ceil(height / step) + 2, math.ceil(width / step) + 2), np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def _soft(value: np.ndarray, width: float) -> np.ndarray:
    """0 … 1, a step at 0 that is as soft as width."""
    return 0.5 + 0.5 * np.tanh(value / (2 * width))


def _light_left(pigment: np.ndarray, blood: np.ndarray | float = 0.0) -> np.ndarray:
    """What they leave of the light, [H, W, 3]; much pigment takes red as well, so that brown turns to black."""
    pigment = np.float32(pigment)[..., None]
    return np.exp(-(pigment * MELANIN + np.float32(blood)[..., None] * BLOOD + 0.25 * pigment * np.abs(pigment)))


def _cover(image: np.ndarray, weight: np.ndarray, colour: np.ndarray) -> None:
    image += weight[..., None].astype(np.float32) * (colour - image)


def _largest_region(inside: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: the largest connected region, its holes filled."""
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(inside.shape, np.uint8)
    cv2.drawContours(mask, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return mask


def _outline(rng, x: np.ndarray, y: np.ndarray, rough: float) -> tuple[np.ndarray, float]:
    """How deep in the lesion, in its mean radii, negative outside; and that radius."""
    area = float(np.clip(0.13 * math.exp(rng.normal(0, 0.75)), 0.03, 0.68))  # share of the frame
    radius = math.sqrt(area * x.size / min(x.shape) ** 2 / math.pi)
    u, v = (axis + axis.min() * float(np.clip(rng.normal(0, 0.25), -0.7, 0.7)) for axis in (x, y))
    turn, stretch = rng.uniform(0, math.pi), math.exp(abs(rng.normal(0, 0.2)))
    u, v = u * math.cos(turn) + v * math.sin(turn), stretch * (v * math.cos(turn) - u * math.sin(turn))
    distance = np.hypot(u, v) / (radius * math.sqrt(stretch))
    distance += rough * (1.3 * _noise(rng, x, min(1 / radius, 9)) + _noise(rng, x, min(3 / radius, 20)))
    depth = np.quantile(distance[::4, ::4], area) - distance
    # Specks and holes that the mask leaves out are not drawn either.
    inside = _largest_region(depth > 0)
    return (np.abs(depth) * np.where(inside, 1, -1)).astype(np.float32), radius


def _nevus(rng, x, y, depth, radius, typical, image) -> None:
    """Symmetric, one brown or darker in the middle, a regular network."""
    pigment = 1 + rng.uniform(-0.3, 0.8) * np.clip(depth, 0, 1)
    turn, period = rng.uniform(0, math.pi), rng.uniform(0.022, 0.036)
    turns = [turn + third * math.pi / 3 for third in range(3)]
    net = sum(np.cos((x * math.cos(a) + y * math.sin(a)) * (2 * math.pi / period)) for a in turns)
    pigment -= rng.uniform(0, 0.5) * typical * net
    _stain(rng, image, pigment, depth, NEVUS)


def _melanoma(rng, x, y, depth, radius, typical, image) -> None:
    """Lopsided, blotchy, several colours: red, black, a blue-grey veil."""
    turn = rng.uniform(0, 2 * math.pi)
    pigment = 1 + 0.6 * typical * np.tanh((x * math.cos(turn) + y * math.sin(turn)) / radius)
    red, black, veil = (_soft(_noise(rng, x, 1.2 / radius) - rng.uniform(0.2, 1), 0.2) for _ in range(3))
    pigment += rng.uniform(0.5, 2) * typical * black - 0.5 * red + 0.15 * _noise(rng, x, 24)
    _stain(rng, image, pigment, depth, MELANOMA, rng.uniform(0, 0.6) * red)
    _cover(image, rng.uniform(0, 0.8) * typical * veil * (depth > 0.1), VEIL)


def _keratosis(rng, x, y, depth, radius, typical, image) -> None:
    """Stuck on: sharp border, waxy yellow-brown, ridges, milia-like cysts."""
    ridges = np.exp(-np.square(_noise(rng, x, rng.uniform(12, 26)) / 0.4))
    pigment = 1 + 0.25 * _noise(rng, x, 1.4 / radius) + rng.uniform(0, 0.8) * ridges
    _cover(image, (0.1 + 0.5 * typical) * (depth > 0), WAX)
    _stain(rng, image, pigment, depth, KERATOSIS)
    _cover(image, rng.uniform(0.3, 0.9) * typical * _soft(_noise(rng, x, 30) - 2, 0.1) * (depth > 0.1), CYST)


def _stain(rng, image, pigment, depth, label: int, blood: np.ndarray | float = 0.0) -> None:
    alpha = _soft(depth, SOFT[label] * rng.uniform(0.4, 1.4))
    amount = math.exp(rng.normal(math.log(0.55), 0.4))
    image *= _light_left(amount * np.maximum(pigment, 0.1) * alpha, blood * alpha)


def _add_hair(rng: np.random.Generator, image: np.ndarray) -> None:
    """On half of the photographs: bent lines of about one direction, colour and width."""
    side, lean, thick = min(image.shape[:2]), rng.uniform(0, math.pi), rng.uniform(0.0015, 0.006)
    colour = rng.uniform(25, 110) * np.array((1, 0.75, 0.6))
    for _ in range(min(int(rng.exponential(12)), 60) if rng.random() < 0.5 else 0):
        turns = lean + rng.normal(0, 0.6) + np.linspace(0, rng.normal(0, 0.9), 20)
        steps = np.column_stack([np.cos(turns), np.sin(turns)]) * side * rng.uniform(0.01, 0.06)
        curve = rng.uniform(-0.2, 1.1, 2) * image.shape[1::-1] + np.cumsum(steps, axis=0)
        width = max(round(thick * side * rng.uniform(0.6, 1.3)), 1)
        cv2.polylines(image, [(curve * 16).astype(np.int32)], False, colour.tolist(), width, cv2.LINE_AA, 4)


def draw_label(seed: int, index: int) -> int:
    """The class of an image, from shuffled blocks of 16 so that even a small split holds every class.

    A split's first 48 images have about the balance of the official validation set (4 melanomas, 4 keratoses,
    8 nevi in 16), all others that of the training set (3, 2, 11); the first three are one of each.
    """
    split, place = divmod(index, SPLIT_STRIDE)
    block = place // 16
    rng = np.random.default_rng([seed, split, block, 1])
    if block == 0:
        return int((*rng.permutation(3), *rng.permutation(np.repeat((0, 1, 2), (3, 3, 7))))[place])
    return int(rng.permutation(np.repeat((0, 1, 2), (4, 4, 8) if block < 3 else (3, 2, 11)))[place % 16])
