"""Pictures of one photograph to be looked at: its outline, what its class is recognised by, small copies, as files."""

import io

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from utils.inference.findings import Finding
from utils.inference.segmentation import lesion_mask
from utils.visualize.figures import heated
from utils.visualize.style import OUTLINES

SMALL = 160  # pixels of a thumbnail's longer side


def outlined(image: np.ndarray, mask: np.ndarray, of: str = "prediction") -> np.ndarray:
    """The photograph with the lesion's outline: uint8 [H, W, 3], bool or 0/1 [H, W] → uint8 [H, W, 3].

    Black beneath a bright colour, seen on any skin: yellow, or cyan of a "truth". Along the frame where that cuts the
    lesion.
    """
    drawn, width = image.copy(), max(2, round(max(image.shape) / 400))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    bright = tuple(round(255 * part) for part in to_rgb(OUTLINES[of]))
    for colour, thickness in (((0, 0, 0), 2 * width), (bright, width)):
        cv2.drawContours(drawn, contours, -1, colour, thickness, cv2.LINE_AA)
    return drawn


def pictures(image: np.ndarray, finding: Finding) -> dict[str, tuple[str, np.ndarray]]:
    """What is shown of a finding on a photograph, by the end of its file's name: (what it is, uint8 [H, W, 3])."""
    found = {}
    if finding.lesion is not None:
        mask = lesion_mask(finding.lesion, image.shape[1::-1])
        found["overlay"] = "outline of the lesion", outlined(image, mask)
    if finding.saliency is not None:
        found["saliency"] = f"bright: what speaks for {finding.first}", heated(image, finding.saliency)
    return found


def captioned(image: np.ndarray, lines: list[str]) -> np.ndarray:
    """The picture with lines of text beneath it, as large as its width allows: uint8 [H', W, 3]."""
    width = image.shape[1]
    font = ImageFont.load_default(max(11, width // 50))
    height = round(1.5 * font.size)
    strip = Image.new("RGB", (width, height * len(lines) + height // 2), (24, 24, 24))
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((height // 2, height // 4 + number * height), line, (235, 235, 235), font)
    return np.vstack([image, np.asarray(strip)])


def jpeg(image: np.ndarray, quality: int = 88) -> bytes:
    """A JPEG file of uint8 [H, W, 3]."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return content.getvalue()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] of the same proportions, SMALL pixels on its longer side."""
    scale = SMALL / max(image.shape)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def grey_png(values: np.ndarray, comment: str) -> bytes:
    """A PNG file of uint8 [H, W], with a comment in it."""
    content, text = io.BytesIO(), PngInfo()
    text.add_text("Comment", comment)
    Image.fromarray(values).save(content, "PNG", pnginfo=text)
    return content.getvalue()
