"""Image files as arrays: whole or refused, upright, at the wanted size; masks binary and in place."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.bad_folder import photograph
from utils import UserError
from utils.data.cache import prepare
from utils.data.images import image_size, read_frame, read_image, read_mask
from utils.data.isic import read_split
from utils.data.parallel import in_order
from utils.data.transforms import TEST_PATCHES, TRAIN_TRANSFORMS, Pixels, cache_sizes, take


def put(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("size", [None, (12, 8)])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"format": "PNG"}], ids=["baseline", "progressive", "PNG"]
)
def test_truncated_images_are_refused_at_every_cut(tmp_path, options, size):
    """The end marker (JPEG: 2 bytes) or its checksum (PNG: 4) may lack: then every pixel must be right."""
    path = put(tmp_path / "ISIC_0000001.jpg", photograph(0), **options)
    whole, expected = path.read_bytes(), read_image(path, size)
    for cut in [*range(1, 30), *range(30, len(whole), 397), len(whole)]:
        path.write_bytes(whole[: len(whole) - cut])
        if cut > (4 if "format" in options else 2):
            with pytest.raises(UserError, match=r"ISIC_0000001.jpg: truncated or not an image"):
                read_image(path, size)
            continue
        try:
            assert np.array_equal(read_image(path, size), expected)
        except UserError as error:
            assert "truncated" in str(error)


@pytest.mark.parametrize("size", [(336, 224), (64, 48)])
def test_decoding_at_reduced_size_stays_close_to_full_decoding(isic2017_fullsize, size):
    """Tolerance: 1.5 of 255 on average and 99.9 % of the values within 16; in the last row and column 32 on average.

    There JPEG's padding (up to 7 px) is averaged in, and some originals end in a dark line.
    """
    samples = {sample.id: sample.image for sample in read_split(isic2017_fullsize, "train", leave_out_copies=False)}
    for id_ in ("ISIC_0000020", "ISIC_0000376"):
        full = cv2.resize(read_image(samples[id_]), size, interpolation=cv2.INTER_AREA)
        difference = np.abs(read_image(samples[id_], size).astype(int) - full)
        assert difference[:-1, :-1].mean() < 1.5 and np.quantile(difference[:-1, :-1], 0.999) <= 16
        assert max(difference[-1].mean(), difference[:, -1].mean()) < 32


def test_a_wanted_size_is_reached_and_the_whole_frame_kept(tmp_path):
    corners = np.zeros((64, 96, 3), np.uint8)
    corners[:16, :16], corners[-16:, -16:] = 255, (255, 0, 0)
    path = put(tmp_path / "corners.png", corners)
    for width, height in ((24, 8), (96, 64), (200, 300), (200, 16)):
        small = read_image(path, (width, height))
        assert small.shape == (height, width, 3)
        assert small[0, 0].tolist() == [255, 255, 255] and small[-1, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [None, (8, 12)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP"])
def test_exif_rotation_is_applied_before_the_size(tmp_path, kind, size):
    """Orientation 6: the stored picture is turned a quarter clockwise, and a reduced decode follows the turn."""
    exif, picture = Image.Exif(), cv2.resize(photograph(0), (192, 128), interpolation=cv2.INTER_CUBIC)
    exif[0x0112] = 6
    path = put(tmp_path / "image.jpg", picture, format=kind, exif=exif, quality=95)
    upright = np.rot90(picture, -1)
    expected = upright if size is None else cv2.resize(upright, size, interpolation=cv2.INTER_AREA)
    assert image_size(path) == (128, 192) and read_frame(path).orientation == 6
    assert np.abs(read_image(path, size).astype(int) - expected).mean() < 3


def test_patches_of_a_fifth_are_as_sharp_as_those_of_originals(isic2017_fullsize, tmp_path):
    """Their finest octave keeps its energy; from the whole image alone, at 2.5 × the network's size, a third does."""
    samples = read_split(isic2017_fullsize, "train", leave_out_copies=False)
    samples = [sample for sample in samples if image_size(sample.image)[0] > 1120][:4]
    sizes = partial(cache_sizes, size=(224, 224), transforms=TRAIN_TRANSFORMS["patches"])
    made = prepare(samples, sizes, tmp_path, masks=False)
    assert set(made.sizes) == {((560, 560), (448, 448))}

    def finest(pixels: Pixels) -> list[float]:
        patches = [take(pixels, patch, (224, 224)) for patch in TEST_PATCHES["9"] if patch[2] == 0.2]
        grey = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32) for patch in patches]
        return [(each - cv2.pyrUp(cv2.pyrDown(each)))[8:-8, 8:-8].var() for each in grey]

    originals = [finest(read_image(sample.image)) for sample in samples]
    with_center, without = (
        [finest(made.image(index)) for index in range(4)],
        [finest(made.frame(index)) for index in range(4)],
    )
    assert 0.95 < np.median(np.divide(with_center, originals)) < 1.05
    assert np.median(np.divide(without, originals)) < 0.5


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 128, 129, 255], [0, 0, 1, 1]),  # the challenge binarises at > 128
        ([0, 127, 255, 255], [0, 0, 1, 1]),
        ([40, 200, 40, 40], [0, 1, 0, 0]),
        ([255, 255, 255, 255], [1, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        *(([0, value, value, 0], [0, 1, 1, 0]) for value in (1, 2, 100, 128, 255)),  # 0 and another
        ([0, 32768, 33024, 65535], [0, 0, 1, 1]),
        ([0, 1, *[255] * 99], [0, 0, *[1] * 99]),  # the noise of a JPEG
        *((values, [0, 0, 0, 0]) for values in ([0, 60, 90, 128], [100, 100, 100, 100], [0, 300, 3000, 9000])),
        *((values, None) for values in (
            [0, 1, 1, 255], [0, 1, 2, 255], [1, 1, 2, 255], [0, 19, 19, 255], [0, 1, 1, 65535],  # class numbers
            [0, 1, 2, 0], [1, 2, 1, 2],
        )),
    ],
)  # fmt: skip
def test_which_values_of_a_mask_are_lesion(tmp_path, stored, expected):
    """The same in 8 bits and in 16; None where it is not known."""
    for dtype in {np.uint16 if max(stored) > 255 else np.uint8, np.uint16}:
        path = put(tmp_path / "mask.png", np.array([stored], dtype))
        if expected is None:
            with pytest.raises(UserError, match=r"mask.png: a mask of values .*, of which lesion is not known"):
                read_mask(path)
        else:
            mask = read_mask(path)
            assert mask.dtype == np.uint8 and mask.tolist() == [expected]


def test_masks_saved_as_jpeg_are_read_as_they_were(tmp_path, isic2017):
    for sample in read_split(isic2017, "validation")[::15]:
        mask = read_mask(sample.mask)
        for quality in (50, 95, 100):
            stored = Image.fromarray(mask * 255)
            assert (read_mask(put(tmp_path / "mask.jpg", stored, quality=quality)) != mask).mean() < 0.003, sample.id


def test_a_resized_mask_stays_binary_and_in_place(tmp_path):
    stored = np.zeros((64, 96), np.uint8)
    stored[16:48, 24:72] = 255
    mask = read_mask(put(tmp_path / "mask.png", stored), (33, 21))
    assert mask.shape == (21, 33) and set(np.unique(mask)) == {0, 1}
    assert np.array_equal(mask, mask[::-1, ::-1])  # a centred lesion stays centred


def test_in_order_takes_items_only_as_needed():
    taken = []
    results = in_order(lambda number: number**2, (taken.append(n) or n for n in range(100)), ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 4] and len(taken) == 10
    assert list(results) == [number**2 for number in range(3, 100)]
