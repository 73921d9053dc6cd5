"""Procedural dermoscopy: one photograph of a skin lesion with its mask and its class, drawn from a seed.

A lesion is drawn as light that comes back through skin: pigment and blood take away more blue and green than red
(Beer–Lambert); blue-grey veil, scar-like regression and keratin lie over it. The classes differ in what dermatologists
look at (symmetry, border, colours, network, milia-like cysts), each to a varying degree, so that they overlap as the
real ones do. Vignettes, uneven light, hair and noise get in the way.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

SIZE = (384, 288)
MELANOMA, KERATOSIS, NEVUS = range(3)  # indices into utils.data.isic.CLASSES
# Each split owns a range of indices: no image is in two splits, and more training images leave the test set as it is.
SPLIT_STRIDE = 100_000
WORK_SIDE = 600  # px; smooth fields are drawn with at most this short side, then enlarged
MELANIN = (0.30, 0.72, 1.0)  # absorption in R, G, B for one unit of pigment
BLOOD = (0.10, 0.75, 0.62)
SKIN_TONES = np.array(
    [(230, 198, 190), (224, 192, 160), (194, 146, 112), (216, 146, 136), (168, 140, 138), (214, 194, 156),
     (236, 228, 222), (140, 100, 78)], np.float32,
)  # fmt: skip
KERATIN = np.array([(178, 142, 96), (132, 112, 96), (150, 106, 72), (196, 160, 132), (120, 96, 70)], np.float32)


def draw_lesion(seed: int, index: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray, int]:
    """One photograph with its truth: a pure function of the arguments.

    size is (width, height). Returns the image uint8 [H, W, 3] RGB, the mask uint8 [H, W] of 0 and 255 (one
    connected region without holes), and the label, an index into CLASSES.
    """
    width, height = size
    rng = np.random.default_rng([seed, index])
    scale = min(1.0, WORK_SIDE / min(size))
    x, y = _grid(round(width * scale), round(height * scale))
    label = draw_label(seed, index)
    typical = rng.beta(3, 1.6)  # how plainly the class shows; 0 = hardly

    field, radius = _outline(rng, x, y, label, typical)
    scene = _skin(rng, x, y)
    scene = (_melanoma, _keratosis, _nevus)[label](rng, x, y, field, radius, typical, scene)
    image = _light(rng, x, y, scene)
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    _hair(rng, image)
    _grain(rng, image)
    mask = _largest_region(cv2.resize(field, size, interpolation=cv2.INTER_LINEAR) > 0)
    return image, mask * np.uint8(255), label


# ------------------------------------------------------------------------------------------------- fields
# Lengths are in units of the image's short side, the origin is its centre; every field is float32 [H, W].


def _grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    side = min(width, height)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / side
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / side
    return np.meshgrid(x, y)


def _noise(rng: np.random.Generator, like: np.ndarray, bumps: float) -> np.ndarray:
    """Smooth noise of about unit variance with so many bumps along the short side."""
    height, width = like.shape
    step = max(min(height, width) / bumps, 1.0)
    shape = (math.ceil(height / step) + 2, math.ceil(width / step) + 2)
    grid = rng.standard_normal(shape, dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def _maybe(rng: np.random.Generator, chance: float, low: float, high: float) -> float:
    """0 or, with this chance, a value between low and high."""
    return rng.uniform(low, high) if rng.random() < chance else 0.0


def _soft(value: np.ndarray, width: float | np.ndarray = 1.0) -> np.ndarray:
    """0 … 1, a step at 0 that is as soft as width."""
    return 0.5 + 0.5 * np.tanh(value / (2 * width))


def _lines(noise: np.ndarray, thickness: float) -> np.ndarray:
    """0 … 1, ridges along the zero crossings of a noise field."""
    return np.exp(-np.square(noise / thickness))


def _honeycomb(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """0 … 1, a regular net with holes `period` apart (a typical pigment network)."""
    turn = rng.uniform(0, math.pi)
    bend_x, bend_y = (0.5 * period * _noise(rng, x, 10) for _ in range(2))
    waves = np.zeros_like(x)
    for k in range(3):
        a = turn + k * math.pi / 3
        waves += np.cos((2 * math.pi / period) * ((x + bend_x) * math.cos(a) + (y + bend_y) * math.sin(a)))
    return np.clip((0.6 - waves) / 2.1, 0, 1)


def _dots(rng, like: np.ndarray, where: np.ndarray, count: int, radii: tuple[float, float], blur: float) -> np.ndarray:
    """0 … 1, round dots with centres inside `where`; radii and blur in units of the short side."""
    side = min(like.shape)
    canvas = np.zeros(like.shape, np.uint8)
    places = np.flatnonzero(where)
    for place in rng.choice(places, count) if len(places) else ():
        row, column = divmod(int(place), like.shape[1])
        radius = max(rng.uniform(*radii) * side, 0.7)
        cv2.circle(canvas, (column * 16, row * 16), round(radius * 16), 255, -1, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(canvas, (0, 0), max(blur * side, 0.5)).astype(np.float32) / 255


def _blend(scene: np.ndarray, weight: np.ndarray, colour: Sequence[float]) -> None:
    """Cover the scene [3, H, W] with a colour, in place."""
    for plane, value in zip(scene, colour, strict=True):
        plane += weight * (float(value) - plane)


def _absorb(scene: np.ndarray, pigment: np.ndarray, blood: np.ndarray | float = 0.0) -> None:
    """Dim by pigment and blood, in place; much pigment takes red as well, so that brown turns to black."""
    grey = 0.25 * pigment * np.abs(pigment)
    for plane, of_pigment, of_blood in zip(scene, MELANIN, BLOOD, strict=True):
        plane *= np.exp(-(pigment * of_pigment + blood * of_blood + grey))


# ------------------------------------------------------------------------------------------------- lesion


def _largest_region(inside: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of 0 and 1: the largest connected region, its holes filled."""
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(inside.shape, np.uint8)
    cv2.drawContours(mask, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return mask


def _outline(rng, x: np.ndarray, y: np.ndarray, label: int, typical: float) -> tuple[np.ndarray, float]:
    """A field, positive inside the lesion (about the distance to its border), and the lesion's mean radius."""
    median = {MELANOMA: 0.16, KERATOSIS: 0.12, NEVUS: 0.11}[label]
    area = float(np.clip(median * math.exp(rng.normal(0, 0.75)), 0.03, 0.68))  # share of the frame
    half_x, half_y = float(-x[0, 0]), float(-y[0, 0])
    radius = math.sqrt(area * 4 * half_x * half_y / math.pi)
    centre_x, centre_y = (2 * half * float(np.clip(rng.normal(0, 0.11), -0.3, 0.3)) for half in (half_x, half_y))
    if rng.random() < 0.08:  # cut by the frame
        side = rng.integers(4)
        shift = rng.uniform(0.6, 1.0) * radius
        centre_x = (centre_x, centre_x, half_x - shift, shift - half_x)[side]
        centre_y = (half_y - shift, shift - half_y, centre_y, centre_y)[side]

    rough = {
        MELANOMA: 0.03 + 0.08 * typical,
        KERATOSIS: rng.uniform(0.03, 0.09),
        NEVUS: rng.uniform(0.015, 0.085),
    }[label]
    bumps = min(1.3 / radius, 14)
    u = x - centre_x + radius * rough * _noise(rng, x, bumps)
    v = y - centre_y + radius * rough * _noise(rng, x, bumps)
    turn, stretch = rng.uniform(0, math.pi), math.exp(abs(rng.normal(0, 0.13 + 0.3 * rough * 3)))
    u, v = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    turns = np.linspace(0, 2 * math.pi, 2048, endpoint=False)
    wave = sum(1.6 * rough * rng.normal() / k * np.cos(k * turns + rng.uniform(0, 2 * math.pi)) for k in range(2, 9))
    wave = np.clip(1 + wave, 0.5, 1.7).astype(np.float32)
    angle = cv2.phase(u, v * stretch)  # 0 … 2π
    distance = np.hypot(u, v * stretch) / math.sqrt(stretch) / wave[(angle * (2048 / 2 / math.pi)).astype(int) % 2048]
    distance += radius * rough * 0.35 * _noise(rng, x, min(5 / radius, 40))

    field = float(np.quantile(distance[::4, ::4], area)) - distance
    inside = _largest_region(field > 0).astype(bool)
    # Specks and holes that the mask leaves out are not drawn either.
    return np.where(inside, np.maximum(field, 1e-4), np.minimum(field, -1e-4)), radius


def _nevus(rng, x, y, field, radius, typical, scene) -> np.ndarray:
    """Symmetric, one or two browns from the centre outwards, a regular network or globules or neither."""
    depth = np.clip(field / radius, 0, 1)
    amount = math.exp(rng.normal(math.log(0.5), 0.5))
    pigment = amount * (1 + rng.uniform(-0.35, 0.7) * (depth - 0.4) + 0.1 * _noise(rng, x, 9))
    if rng.random() < 0.45:  # a second brown, in the middle
        pigment += rng.uniform(0.2, 0.7) * amount * _soft(depth - rng.uniform(0.35, 0.7), 0.05)
    kind = rng.choice(["network", "globules", "plain"], p=(0.6, 0.18, 0.22))
    if kind == "network":
        net = _honeycomb(rng, x, y, rng.uniform(0.022, 0.036))
        pigment += (
            (rng.uniform(0.35, 0.8) * amount * (0.4 + 0.6 * typical))
            * (net - 0.35)
            * _soft(_noise(rng, x, 5) + 0.8, 0.4)
        )
    elif kind == "globules":
        dots = _dots(rng, x, field > 0.01, int(rng.integers(25, 90)), (0.005, 0.011), 0.002)
        pigment += rng.uniform(0.4, 0.9) * amount * dots
    alpha = _soft(field + 0.002, rng.uniform(0.004, 0.03) * (0.5 + radius))
    blood = _maybe(rng, 0.4, 0.1, 0.45)
    _absorb(scene, pigment * alpha, blood * alpha)
    return scene


def _melanoma(rng, x, y, field, radius, typical, scene) -> np.ndarray:
    """Lopsided, blotchy, several colours, a broken network."""
    amount = math.exp(rng.normal(math.log(0.5), 0.45))
    turn = rng.uniform(0, 2 * math.pi)
    slope = (x * math.cos(turn) + y * math.sin(turn)) / radius
    pigment = amount * (1 + 0.45 * typical * np.tanh(slope) + 0.12 * _noise(rng, x, 12))
    blotch = _soft(_noise(rng, x, 1.1 / radius) + 0.35 * _noise(rng, x, 14) - rng.uniform(0.2, 0.8), 0.22)
    pigment += rng.uniform(0.3, 1.2) * (0.3 + 0.7 * typical) * blotch
    net = _lines(_noise(rng, x, rng.uniform(20, 36)), 0.5) * _soft(_noise(rng, x, 1 / radius), 0.2)
    pigment += rng.uniform(0.2, 0.7) * amount * net
    border = rng.uniform(0.003, 0.008) + 0.012 * _soft(_noise(rng, x, 1 / radius), 0.3)  # abrupt here, fading there
    alpha = _soft(field + 0.002, border)
    patches = [_spot(rng, x, y, field, radius) for _ in range(4)]
    blood = rng.uniform(0.3, 0.9) * patches[0] * (rng.random() < 0.5)
    pigment = pigment * (1 - 0.7 * patches[0] * (rng.random() < 0.4))
    if rng.random() < 0.45:
        pigment += rng.uniform(0.6, 1.6) * patches[1]  # black
    _absorb(scene, np.maximum(pigment, 0.05) * alpha, blood * alpha)
    if rng.random() < 0.25 + 0.4 * typical:  # blue-grey veil
        _blend(scene, rng.uniform(0.35, 0.75) * patches[2] * alpha, (92, 104, 128))
    if rng.random() < 0.15 + 0.35 * typical:  # white, scar-like regression
        _blend(scene, rng.uniform(0.3, 0.65) * patches[3] * alpha, (224, 198, 196))
    return scene


def _spot(rng, x, y, field, radius) -> np.ndarray:
    """0 … 1, an uneven patch somewhere inside the lesion."""
    places = np.flatnonzero(field > 0.15 * field.max())
    place = places[rng.integers(len(places))]
    near = np.hypot(x - x.flat[place], y - y.flat[place]) / (radius * rng.uniform(0.3, 0.6))
    return _soft(1 - near + 0.3 * _noise(rng, x, 2.5 / radius) + 0.12 * _noise(rng, x, 16), 0.15)


def _keratosis(rng, x, y, field, radius, typical, scene) -> np.ndarray:
    """Stuck on: sharp border, waxy yellow-brown to grey, ridges, milia-like cysts."""
    alpha = _soft(field + 0.001, rng.uniform(0.002, 0.006) if rng.random() < typical else 0.012)
    amount = math.exp(rng.normal(math.log(0.42), 0.5))
    mottle = _noise(rng, x, 1.4 / radius)
    pigment = amount * (1 + 0.25 * mottle + 0.12 * _noise(rng, x, 20))
    folds = _noise(rng, x, rng.uniform(12, 26)) + 0.5 * _noise(rng, x, 36)
    ridges = _lines(folds, rng.uniform(0.25, 0.6)) * _soft(_noise(rng, x, 5) + 0.5, 0.4)
    pigment += _maybe(rng, 0.65, 0.1, 0.45) * ridges
    waxy = KERATIN[rng.choice(len(KERATIN), 2, replace=False)]
    waxy = waxy * float(scene.mean() / 165)
    opacity = (rng.uniform(0.1, 0.35) + 0.35 * typical) * alpha
    second = _soft(mottle, 0.4)
    _blend(scene, opacity * (1 - second), waxy[0])
    _blend(scene, opacity * second, waxy[1])
    _absorb(scene, pigment * alpha)
    per_area = max(field.clip(0).astype(bool).mean(), 0.03)
    cysts = _dots(rng, x, field > 0.015, 1 + round(rng.uniform(20, 130) * per_area * typical), (0.004, 0.012), 0.003)
    _blend(scene, rng.uniform(0.55, 0.95) * cysts, (248, 240, 222))
    return scene


# ------------------------------------------------------------------------------------- skin, light, camera


def _skin(rng, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The scene, float32 [3, H, W], about 0 … 255: tone, mottling, furrows."""
    tone = rng.dirichlet(np.full(len(SKIN_TONES), 0.35)) @ SKIN_TONES
    scene = np.empty((3, *x.shape), np.float32)
    scene[:] = tone[:, None, None]
    furrows = _lines(_noise(rng, x, rng.uniform(28, 60)), 0.35)
    pigment = rng.uniform(0.01, 0.08) * _noise(rng, x, 4) + rng.uniform(0.0, 0.05) * _noise(rng, x, 16)
    pigment += rng.uniform(0.0, 0.1) * (furrows - 0.3)
    blood = rng.uniform(0.01, 0.05) * _noise(rng, x, rng.uniform(4, 9)) + rng.uniform(0.0, 0.05) * _noise(rng, x, 22)
    _absorb(scene, pigment, blood)
    return scene


def _light(rng, x: np.ndarray, y: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: uneven lighting, dark corners, contrast, colour cast, blur."""
    light = 1 + rng.normal(0, 0.07) * x + rng.normal(0, 0.07) * y + rng.uniform(0, 0.04) * _noise(rng, x, 2)
    far = np.hypot(x, y * float(x[0, 0] / y[0, 0]) ** rng.uniform(0, 0.4)) / -x[0, 0]  # 1 at the left and right rim
    light = light * (1 - rng.uniform(0, 0.3) * np.square(far))
    haze = _maybe(rng, 0.35, 0.1, 0.45)  # flat, low-contrast photographs
    gain, warmth, tint = np.exp(rng.normal(0, (0.1, 0.05, 0.02)))
    for plane, cast in zip(scene, (warmth, tint, 1 / warmth), strict=True):
        mean = float(plane.mean())
        plane += haze * (mean - plane)
        plane *= light * float(gain * cast)
    image = cv2.merge([cv2.convertScaleAbs(np.maximum(plane, 0)) for plane in scene])
    blur = _maybe(rng, 0.5, 0.001, 0.005) * min(x.shape)
    return cv2.GaussianBlur(image, (0, 0), blur) if blur > 0.3 else image


def _hair(rng: np.random.Generator, image: np.ndarray) -> None:
    """On half of the photographs: bent lines of about one direction, colour and width."""
    if rng.random() < 0.5:
        return
    height, width = image.shape[:2]
    side = min(height, width)
    count = int(min(1 + rng.exponential(12), 60))
    lean, spread = rng.uniform(0, math.pi), rng.uniform(0.2, 1.2)
    colour = np.array([(28, 20, 18), (60, 40, 30), (110, 80, 55)][rng.integers(3)]) * rng.uniform(0.7, 1.2)
    thick = rng.uniform(0.0015, 0.006) * side
    t = np.linspace(0, 1, 20)[:, None]
    for _ in range(count):
        start = rng.uniform((-0.2 * width, -0.2 * height), (1.1 * width, 1.1 * height))
        turn, bend = lean + rng.normal(0, spread), rng.normal(0, 0.9)
        length = rng.uniform(0.2, 1.1) * side
        middle = start + length / 2 * np.array((math.cos(turn), math.sin(turn)))
        end = middle + length / 2 * np.array((math.cos(turn + bend), math.sin(turn + bend)))
        curve = start * (1 - t) ** 2 + 2 * middle * t * (1 - t) + end * t**2
        shade = tuple(map(float, np.clip(colour * rng.uniform(0.8, 1.3), 0, 255)))
        width_px = max(round(thick * rng.uniform(0.6, 1.3)), 1)
        cv2.polylines(image, [(curve * 16).round().astype(np.int32)], False, shade, width_px, cv2.LINE_AA, 4)


def _grain(rng: np.random.Generator, image: np.ndarray) -> None:
    """Sensor noise in place, in bands of rows so that a 30-megapixel image needs no float copy."""
    strength = rng.uniform(1, 5)
    for top in range(0, len(image), 256):
        band = image[top : top + 256]
        noise = np.rint(rng.standard_normal(band.shape[:2], dtype=np.float32) * strength).astype(np.int16)
        image[top : top + 256] = cv2.add(band, cv2.merge([noise] * 3), dtype=cv2.CV_8U)


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
