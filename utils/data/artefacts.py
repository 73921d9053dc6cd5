"""What lies between skin and picture: gel bubbles, a ruler, hair, and the sensor's noise, drawn into photographs.

Each works in place on an image, uint8 [H, W, 3] RGB, and draws its numbers from `rng`. Lengths are in pixels; OpenCV is
given sixteenths of one.
"""

import math

import cv2
import numpy as np


def draw_artefacts(rng: np.random.Generator, image: np.ndarray) -> None:
    """Bubbles on a fifth of the photographs, a ruler on three of ten, hair on half of them; sharp at any size."""
    side = min(image.shape[:2])
    if rng.random() < 0.2:
        for _ in range(rng.integers(1, 14)):
            _bubble(rng, image, side * min(rng.exponential(0.014) + 0.005, 0.06))
    if rng.random() < 0.3:
        _ruler(rng, image)
    if rng.random() < 0.5:
        _hair(rng, image)


def _bubble(rng, image: np.ndarray, radius: float) -> None:
    """A gel bubble: dark outline, bright crescent, specular highlight."""
    height, width = image.shape[:2]
    column, row = rng.uniform(0, width), rng.uniform(0, height)
    here = image[int(row), int(column)].astype(float)
    centre, line = (round(column * 16), round(row * 16)), max(round(radius * 0.12), 1)
    cv2.circle(image, centre, round(radius * 16), tuple(here * 0.72), line, cv2.LINE_AA, 4)
    turn = rng.uniform(0, 360)
    axes = (round(radius * 13), round(radius * 13))
    cv2.ellipse(image, centre, axes, turn, 0, 110, tuple(np.minimum(here * 1.25 + 25, 255)), line, cv2.LINE_AA, 4)
    spot = (round(column - radius * 0.35), round(row - radius * 0.35))
    cv2.circle(image, spot, max(round(radius * 0.17), 1), (252, 252, 252), -1, cv2.LINE_AA)


def _ruler(rng, image: np.ndarray) -> None:
    """A millimetre scale along the lower part of the frame."""
    height, width = image.shape[:2]
    turn = rng.normal(0, 0.2)
    along = np.array((math.cos(turn), math.sin(turn)))
    across = np.array((along[1], -along[0]))
    length = rng.uniform(0.35, 0.6) * width
    start = np.array((rng.uniform(0.1, 0.35) * width, rng.uniform(0.82, 0.95) * height))
    line, ticks = max(round(0.004 * min(height, width)), 1), int(rng.integers(12, 31))
    strokes = [(start, start + along * length)]
    for k in range(ticks + 1):
        foot = start + along * length * k / ticks
        strokes.append((foot, foot + across * height * (0.03 if k % 5 == 0 else 0.017)))
    strokes = [np.round(np.array(stroke) * 16).astype(np.int32) for stroke in strokes]
    cv2.polylines(image, strokes, False, (52, 46, 48), line, cv2.LINE_AA, 4)


def _hair(rng, image: np.ndarray) -> None:
    """Bent lines of about one direction, colour and width."""
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


def add_grain(rng, image: np.ndarray) -> None:
    """Sensor noise in place, in bands of rows so that a 30-megapixel image needs no float copy."""
    strength = rng.uniform(1, 5)
    for top in range(0, len(image), 256):
        band = image[top : top + 256]
        noise = np.rint(rng.standard_normal(band.shape[:2], dtype=np.float32) * strength).astype(np.int16)
        image[top : top + 256] = cv2.add(band, cv2.merge([noise] * 3), dtype=cv2.CV_8U)
