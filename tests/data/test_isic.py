"""The data layer: what is found on disk, and that each file is read right or refused."""

from collections import Counter
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import UserError
from utils.data.images import image_size, read_image, read_mask
from utils.data.isic import CLASSES, KNOWN_COPIES, Metadata, read_labels, read_metadata, read_split

HEADER = "image_id,melanoma,seborrheic_keratosis\n"
PEOPLE = "image_id,age_approximate,sex\n"


def photograph(seed: int = 0, width: int = 96, height: int = 64) -> Image.Image:
    """Skin-coloured smooth noise: it has detail for an encoder and no two seeds look alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) // 2 + 90)


def put(path: Path, image: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photograph()).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    return path


def ids(root: Path, split: str = "train", **options) -> list[str]:
    return [sample.id for sample in read_split(root, split, **options)]


# --- what is found


@pytest.mark.parametrize("folder", ["Aug_Training_Data", "ISIC-2017_Training_Data", "isic-2017_training_data"])
@pytest.mark.parametrize("nested", [False, True])
def test_training_images_are_found_and_paired_by_id(tmp_path, folder, nested):
    inner = folder if nested else ""
    image = put(tmp_path / folder / inner / "ISIC_0000002.jpg")
    put(tmp_path / folder / inner / "ISIC_0000001.JPEG")
    truth = "ISIC-2017_Training_Part1_GroundTruth"
    mask = put(tmp_path / truth / (truth if nested else "") / "ISIC_0000002_Segmentation.png")
    (tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000002,1.0,0.0\n")
    first, second = read_split(tmp_path, "train")
    assert (first.id, first.mask, first.label) == ("ISIC_0000001", None, None)
    assert (second.id, second.image, second.mask, second.label) == ("ISIC_0000002", image, mask, 0)


def test_both_training_folders_make_a_union_and_the_first_wins(tmp_path):
    put(tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg")
    put(tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000002.jpg")
    wins = put(tmp_path / "Aug_Training_Data" / "ISIC_0000002.jpg")
    samples = read_split(tmp_path, "train")
    assert [sample.id for sample in samples] == ["ISIC_0000001", "ISIC_0000002"]
    assert samples[1].image == wins


@pytest.mark.parametrize("data", ["ISIC-2017_Test_Data", "ISIC-2017_Test_v2_Data"])
@pytest.mark.parametrize("truth", ["ISIC-2017_Test", "ISIC-2017_Test_v2"])
def test_either_name_of_the_test_split(tmp_path, data, truth):
    put(tmp_path / data / "ISIC_0000003.jpg")
    mask = put(tmp_path / f"{truth}_Part1_GroundTruth" / "ISIC_0000003_segmentation.png")
    (tmp_path / f"{truth}_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000003,0,1\n")
    (sample,) = read_split(tmp_path, "test")
    assert (sample.mask, sample.label) == (mask, 1)


def test_superpixels_and_other_files_are_no_images(tmp_path):
    folder = tmp_path / "ISIC-2017_Validation_Data"
    put(folder / "ISIC_0000001.jpg")
    put(folder / "ISIC_0000001_superpixels.png")
    put(folder / "ISIC_0000009_superpixels.png")
    put(tmp_path / "ISIC-2017_Validation_Part1_GroundTruth" / "ISIC_0000001_superpixels.png")
    for name in ("._ISIC_0000001.jpg", "Thumbs.db", "ISIC-2017_Validation_Data_metadata.csv", "ISIC_0000001 (1).jpg"):
        (folder / name).write_bytes(b"x")
    (sample,) = read_split(tmp_path, "validation")
    assert (sample.id, sample.mask) == ("ISIC_0000001", None)


def test_known_copies_are_left_out_of_training_only(tmp_path):
    for split, folder in (("train", "Training"), ("validation", "Validation"), ("test", "Test_v2")):
        for id_ in {pair[1] for pair in KNOWN_COPIES if pair[0] == split} | {"ISIC_0000001"}:
            put(tmp_path / f"ISIC-2017_{folder}_Data" / f"{id_}.jpg")
    assert ids(tmp_path) == ["ISIC_0000001"]
    left_out = set(ids(tmp_path, leave_out_copies=False)) - set(ids(tmp_path))
    assert left_out > {"ISIC_0012271", "ISIC_0012175", "ISIC_0012887", "ISIC_0013163", "ISIC_0012970"}
    assert len(left_out) == 31
    assert ids(tmp_path, "validation") == ["ISIC_0000001", "ISIC_0012221", "ISIC_0012222"]


def test_absent_split_is_empty_and_absent_folder_an_error(tmp_path):
    assert read_split(tmp_path, "test") == []
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="'val': expected one of train, validation, test"):
        read_split(tmp_path, "val")


def test_counts_of_the_real_folder(isic2017):
    everything = read_split(isic2017, "train", leave_out_copies=False)
    assert (len(everything), len(read_split(isic2017, "train"))) == (2000, 1969)
    validation, test = read_split(isic2017, "validation"), read_split(isic2017, "test")
    assert (len(validation), len(test)) == (150, 600)
    for samples, expected in ((everything, (374, 254, 1372)), (validation, (30, 42, 78))):
        counts = Counter(sample.label for sample in samples)
        assert tuple(counts[index] for index in range(len(CLASSES))) == expected
        assert all(sample.mask is not None for sample in samples)
    assert all(sample.mask is None and sample.label is None for sample in test)


def test_superpixels_of_the_real_originals_are_no_images(isic2017_fullsize):
    samples = read_split(isic2017_fullsize, "train", leave_out_copies=False)
    assert len(samples) == 36
    for sample in samples[:3]:
        assert read_image(sample.image).shape[:2] == read_mask(sample.mask).shape


# --- labels


def test_labels_tolerate_bom_line_ends_and_column_order(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(
        "\ufeffseborrheic_keratosis, image_id ,melanoma\r\n1.0,isic_0000001,0.0\r\n"
        "0,ISIC_0000002,1\r\n0.0,ISIC_0000003,0\r\n\r\n".encode()
    )
    assert read_labels(path) == {"ISIC_0000001": 1, "ISIC_0000002": 0, "ISIC_0000003": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,melanoma\nISIC_0000001,0\n", "no column seborrheic_keratosis"),
        ("", "no column image_id, melanoma, seborrheic_keratosis"),
        (HEADER + "ISIC_0000001,1,1\n", "row 2, ISIC_0000001: both"),
        (HEADER + "ISIC_0000001,0,0\nISIC_0000002,0.5,0\n", "row 3, ISIC_0000002: melanoma is '0.5'"),
        (HEADER + "ISIC_0000001,nan,0\n", "melanoma is 'nan'"),
        (HEADER + "ISIC_0000001,0\n", "seborrheic_keratosis is None"),
        (HEADER + "ISIC_0000001,0,0\nISIC_0000001,0,0\n", "row 3: ISIC_0000001 is there a second time"),
        ((HEADER + "ISIC_0000001,0,0\n").encode("utf-16"), "not readable as a comma-separated text file"),
    ],
)
def test_faulty_labels_are_named(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"labels.csv") as error:
        read_labels(path)
    assert message in str(error.value)


def test_faulty_labels_do_not_stop_segmentation(tmp_path):
    put(tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg")
    (tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000001,1,1\n")
    assert read_split(tmp_path, "train", with_labels=False)[0].label is None
    with pytest.raises(UserError, match="both"):
        read_split(tmp_path, "train")


# --- metadata


@pytest.mark.parametrize(
    ("split", "path"),
    [
        ("train", "ISIC-2017_Training_Data_metadata.csv"),
        ("train", "ISIC-2017_Training_Data/ISIC-2017_Training_Data_metadata.csv"),
        ("train", "Aug_Training_Data/ISIC-2017_Training_Data_metadata.csv"),
        ("validation", "isic-2017_validation_data/isic-2017_validation_data_METADATA.CSV"),
        ("test", "ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data/ISIC-2017_Test_v2_Data_metadata.csv"),
        ("test", "ISIC-2017_Test_Data/ISIC-2017_Test_v2_Data_metadata.csv"),
    ],
)
def test_metadata_are_found_beside_and_inside_the_image_folder(tmp_path, split, path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(PEOPLE + "ISIC_0000001,55,male\n")
    found = {name: read_metadata(tmp_path, name) for name in ("train", "validation", "test")}
    assert found.pop(split) == {"ISIC_0000001": Metadata(55.0, "male")}
    assert list(found.values()) == [{}, {}]


def test_metadata_in_the_root_come_first(tmp_path):
    name, folder = "ISIC-2017_Training_Data_metadata.csv", tmp_path / "ISIC-2017_Training_Data"
    folder.mkdir()
    (folder / name).write_text(PEOPLE + "ISIC_0000001,55,male\n")
    (tmp_path / name).write_text(PEOPLE + "ISIC_0000001,60,female\n")
    assert read_metadata(tmp_path, "train") == {"ISIC_0000001": Metadata(60.0, "female")}


def test_metadata_tolerate_bom_line_ends_column_order_and_what_is_not_recorded(tmp_path):
    (tmp_path / "ISIC-2017_Test_v2_Data_metadata.csv").write_bytes(
        "\ufeffsex, age_approximate ,more, image_id\r\n female ,45.0,x, isic_0000001\r\nunknown,0,,ISIC_0000002\r\n"
        "Male,unknown,,ISIC_0000003\r\n,,,ISIC_0000004\r\n\r\n".encode()
    )
    assert read_metadata(tmp_path, "test") == {
        "ISIC_0000001": Metadata(45.0, "female"),
        "ISIC_0000002": Metadata(0.0, None),
        "ISIC_0000003": Metadata(None, "male"),
        "ISIC_0000004": Metadata(None, None),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,sex\nISIC_0000001,male\n", "no column age_approximate in"),
        ("", "no column age_approximate, image_id, sex"),
        (PEOPLE + "ISIC_1_downsampled,55,male\n", "row 2: image_id is 'ISIC_1_downsampled'"),
        (PEOPLE + "ISIC_0000001,55,male\nisic_0000001,50,male\n", "row 3: ISIC_0000001 is there a second time"),
        (PEOPLE + "ISIC_0000001,55,male\nISIC_0000002,old,male\n", "row 3, ISIC_0000002: age_approximate is 'old'"),
        (PEOPLE + "ISIC_0000001,nan,male\n", "age_approximate is 'nan', expected years or unknown"),
        (PEOPLE + "ISIC_0000001,-5,male\n", "age_approximate is '-5'"),
        (PEOPLE + "ISIC_0000001,1955,male\n", "age_approximate is '1955'"),
        (PEOPLE + "ISIC_0000001\n", "age_approximate is None"),
        (PEOPLE + "ISIC_0000001,55,m\n", "row 2, ISIC_0000001: sex is 'm', expected female, male or unknown"),
        (PEOPLE + "ISIC_0000001,55\n", "sex is None"),
        ((PEOPLE + "ISIC_0000001,55,male\n").encode("utf-16"), "not readable as a comma-separated text file"),
    ],
)
def test_faulty_metadata_are_named(tmp_path, text, message):
    path = tmp_path / "ISIC-2017_Training_Data_metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"ISIC-2017_Training_Data_metadata.csv: ") as error:
        read_metadata(tmp_path, "train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_metadata_of_the_real_folder(isic2017):
    """Counted in the files with cut, sort and uniq."""
    for split, images, females, males, without_age in (("train", 2000, 871, 900, 256), ("validation", 150, 59, 90, 1)):
        people = read_metadata(isic2017, split)
        assert people.keys() == {sample.id for sample in read_split(isic2017, split, leave_out_copies=False)}
        assert Counter(person.sex for person in people.values()) == {
            "female": females,
            "male": males,
            None: images - females - males,
        }
        assert sum(person.age is None for person in people.values()) == without_age
    assert people["ISIC_0015627"] == Metadata(15.0, "female")
    assert read_metadata(isic2017, "test") == {}


# --- one file


def encoded(image: Image.Image, format_: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [None, (12, 8)])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "png"])
def test_truncated_images_are_refused_at_every_cut(tmp_path, kind, size):
    """The end marker (JPEG: 2 bytes) or its checksum (PNG: 4) may lack: then every pixel must be right."""
    path = tmp_path / "ISIC_0000001.jpg"
    image = photograph()
    whole = encoded(image, "PNG") if kind == "png" else encoded(image, "JPEG", progressive=kind == "progressive")
    path.write_bytes(whole)
    expected = read_image(path, size)
    marker = 4 if kind == "png" else 2
    for cut in [*range(1, 30), *range(30, len(whole), 97), len(whole)]:
        path.write_bytes(whole[: len(whole) - cut])
        if cut > marker:
            with pytest.raises(UserError, match=r"ISIC_0000001.jpg: truncated or not an image"):
                read_image(path, size)
            continue
        try:
            assert np.array_equal(read_image(path, size), expected)
        except UserError as error:
            assert "truncated" in str(error)


def test_a_truncated_original_is_refused_though_it_is_decoded_small(isic2017_fullsize, tmp_path):
    whole = next(s.image for s in read_split(isic2017_fullsize, "train") if s.id == "ISIC_0000080").read_bytes()
    path = tmp_path / "cut.jpg"
    for cut in (3, 10, 100, 1000, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(UserError, match="truncated"):
            read_image(path, (336, 224))


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "ISIC_0000001.jpg"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(UserError, match=r"ISIC_0000001.jpg: truncated or not an image"):
            read(path)
    with pytest.raises(UserError, match=r"gone.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")


def test_a_damaged_mask_is_refused(tmp_path):
    path = put(tmp_path / "mask.png", Image.fromarray(np.eye(64, dtype=np.uint8) * 255))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mask.png"):
        read_mask(path)


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = put(tmp_path / "huge.png")
    monkeypatch.setattr("utils.data.images.MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(UserError, match=r"huge.png: too many pixels"):
        read_image(path)


@pytest.mark.parametrize("size", [(336, 224), (64, 48)])
def test_decoding_at_reduced_size_stays_close_to_full_decoding(isic2017_fullsize, size):
    """Tolerance: 1.5 of 255 on average and 99.9 % of the values within 16; in the last row and column 32 on average.

    There JPEG's padding (up to 7 px) is averaged in, and some originals end in a dark line.
    """
    samples = {sample.id: sample.image for sample in read_split(isic2017_fullsize, "train", leave_out_copies=False)}
    for id_ in ("ISIC_0000020", "ISIC_0000148", "ISIC_0000189", "ISIC_0000376"):
        full = cv2.resize(read_image(samples[id_]), size, interpolation=cv2.INTER_AREA)
        difference = np.abs(read_image(samples[id_], size).astype(int) - full)
        assert difference[:-1, :-1].mean() < 1.5
        assert np.quantile(difference[:-1, :-1], 0.999) <= 16
        assert max(difference[-1].mean(), difference[:, -1].mean()) < 32


def test_a_wanted_size_is_reached_and_the_whole_frame_kept(tmp_path):
    corners = np.zeros((64, 96, 3), np.uint8)
    corners[:16, :16], corners[-16:, -16:] = 255, (255, 0, 0)
    path = put(tmp_path / "corners.png", Image.fromarray(corners))
    for width, height in ((24, 8), (96, 64), (200, 300), (200, 16)):
        small = read_image(path, (width, height))
        assert small.shape == (height, width, 3)
        assert small[0, 0].tolist() == [255, 255, 255]
        assert small[-1, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_png_modes_become_rgb(tmp_path, mode):
    image = photograph().convert(mode)
    expected = np.array(image.convert("RGBA").convert("RGB"))
    assert np.array_equal(read_image(put(tmp_path / "image.png", image)), expected)


def test_palette_with_transparency_raises_no_warning(tmp_path, recwarn):
    path = tmp_path / "image.png"
    photograph().quantize(16).save(path, transparency=bytes(range(16)))
    assert read_image(path).shape == (64, 96, 3)
    assert not recwarn.list


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = photograph()
    path = put(tmp_path / "image.jpg", image.convert("CMYK"))
    assert np.abs(read_image(path).astype(int) - np.array(image)).mean() < 3


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    grey = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
    path = put(tmp_path / "image.png", Image.fromarray(grey))
    assert np.array_equal(read_image(path), np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert np.array_equal(read_mask(path), (grey >> 8) > 128)


@pytest.mark.parametrize("size", [None, (8, 12)])
def test_exif_rotation_is_applied_before_the_size(tmp_path, size):
    """Orientation 6: the stored picture is turned a quarter clockwise, and a reduced decode follows the turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "image.jpg"
    photograph(width=192, height=128).save(path, exif=exif, quality=95)
    upright = np.rot90(np.array(photograph(width=192, height=128)), -1)
    expected = upright if size is None else cv2.resize(upright, size, interpolation=cv2.INTER_AREA)
    assert image_size(path) == (128, 192)
    assert np.abs(read_image(path, size).astype(int) - expected).mean() < 3


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([[0, 128, 129, 255]], [[0, 0, 1, 1]]),  # the challenge binarises at > 128
        ([[0, 1, 1, 0]], [[0, 1, 1, 0]]),
        ([[0, 1, 2, 0]], [[0, 0, 0, 0]]),
        ([[0, 0, 0, 0]], [[0, 0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_mask_rule(tmp_path, stored, expected, colour):
    image = Image.fromarray(np.array(stored, np.uint8))
    mask = read_mask(put(tmp_path / "mask.png", image.convert("RGB") if colour else image))
    assert mask.dtype == np.uint8
    assert mask.tolist() == expected


def test_mask_kinds_of_one_bit_and_16_bit(tmp_path):
    one_bit = put(tmp_path / "one.png", Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"))
    assert read_mask(one_bit).tolist() == [[0, 1]]
    sixteen = put(tmp_path / "sixteen.png", Image.fromarray(np.array([[0, 1]], np.uint16)))
    assert read_mask(sixteen).tolist() == [[0, 1]]


def test_a_resized_mask_stays_binary_and_in_place(tmp_path):
    stored = np.zeros((64, 96), np.uint8)
    stored[16:48, 24:72] = 255
    mask = read_mask(put(tmp_path / "mask.png", Image.fromarray(stored)), (33, 21))
    assert mask.shape == (21, 33)
    assert set(np.unique(mask)) == {0, 1}
    assert np.array_equal(mask, mask[::-1, ::-1])  # a centred lesion stays centred
