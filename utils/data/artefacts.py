"""What lies between skin and picture, drawn into photographs: hair, and the sensor's noise.

Each works in place on an image, uint8 [H, W, 3] RGB, and draws its numbers from `rng`.
"""

import math

import cv2
import numpy as np


def draw_hair(rng: np.random.Generator, image: np.ndarray) -> None:
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


def add_grain(rng: np.random.Generator, image: np.ndarray) -> None:
    """Sensor noise in place, in bands of rows so that a 30-megapixel image needs no float copy."""
    strength = rng.uniform(1, 5)
    for top in range(0, len(image), 256):
        band = image[top : top + 256]
        noise = np.rint(rng.standard_normal(band.shape[:2], dtype=np.float32) * strength).astype(np.int16)
        image[top : top + 256] = cv2.add(band, cv2.merge([noise] * 3), dtype=cv2.CV_8U)
