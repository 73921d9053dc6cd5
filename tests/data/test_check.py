"""The inspection: a sound folder, one damaged in every way we know, and the real ones."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import seg_main
from tests.data.test_isic import HEADER, encoded, photograph
from utils import UserError
from utils.data.check import inspect_folder, main
from utils.data.isic import KNOWN_COPIES
from utils.data.splits import segmentation_data
from utils.data.synthetic import make_synthetic

FOLDERS = {"train": "Training", "validation": "Validation", "test": "Test_v2"}


def image_path(root: Path, split: str, number: int) -> Path:
    return root / f"ISIC-2017_{FOLDERS[split]}_Data" / f"ISIC_{number:07}.jpg"


def mask_path(root: Path, split: str, number: int) -> Path:
    return root / f"ISIC-2017_{FOLDERS[split]}_Part1_GroundTruth" / f"ISIC_{number:07}_segmentation.png"


def lesion(low: int = 0, high: int = 255) -> np.ndarray:
    mask = np.full((64, 96), low, np.uint8)
    mask[20:40, 30:60] = high
    return mask


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 training, 3 validation and 2 test images (numbers 1…, 101…, 201…) with masks and labels, all sound."""
    for split, first, count in (("train", 1, 20), ("validation", 101, 3), ("test", 201, 2)):
        numbers = range(first, first + count)
        for number in numbers:
            image, mask = image_path(tmp_path, split, number), mask_path(tmp_path, split, number)
            image.parent.mkdir(exist_ok=True)
            mask.parent.mkdir(exist_ok=True)
            photograph(number).save(image, quality=95)
            save_mask(mask, lesion())
        rows = "".join(f"ISIC_{n:07},{float(n % 3 == 0)},{float(n % 3 == 1)}\n" for n in numbers)
        (tmp_path / f"ISIC-2017_{FOLDERS[split]}_Part3_GroundTruth.csv").write_text(HEADER + rows)
    return tmp_path


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_a_sound_folder(folder, capsys):
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "train: 20 images, 20 masks, 20 pairs\n  classes: melanoma 6, seborrheic_keratosis 7, nevus 7\n" in text
    assert "min 96x64, median 96x64, max 96x64; 1 distinct" in text
    assert "problems: none\ncopies across splits: none\n" in text
    assert text.endswith("training can start\n")


def test_every_damage_is_named(folder, capsys):
    train = {number: image_path(folder, "train", number) for number in range(1, 21)}
    masks = {number: mask_path(folder, "train", number) for number in range(1, 21)}
    train[1].write_bytes(train[1].read_bytes()[:-20])
    train[2].write_bytes(b"")
    train[3].write_bytes(b"<!DOCTYPE html><title>404</title>")
    masks[4].write_bytes(masks[4].read_bytes()[:-30])
    masks[5].unlink()
    save_mask(masks[6], lesion(0, 0))
    save_mask(masks[7], lesion(255, 255))
    save_mask(masks[8], lesion(0, 1))
    save_mask(masks[9], lesion(40, 200))
    save_mask(masks[10], lesion()[::2, ::2])
    train[11].unlink()
    shutil.copy(train[12], image_path(folder, "validation", 12))
    photograph(101).resize((48, 32)).save(train[13], quality=70)
    shutil.copy(image_path(folder, "test", 201), train[14])
    shutil.copy(train[15], train[16])
    labels = folder / "ISIC-2017_Validation_Part3_GroundTruth.csv"
    labels.write_text(HEADER + "ISIC_0000101,1.0,1.0\n")
    train_labels = folder / "ISIC-2017_Training_Part3_GroundTruth.csv"
    kept = [line for line in train_labels.read_text().splitlines() if "0000017" not in line]
    train_labels.write_text("\n".join([*kept, "ISIC_0000999,0,0\n"]))

    assert main([str(folder)]) == 1
    text = capsys.readouterr().out
    for words in (
        ("ISIC_0000001.jpg", "truncated"),
        ("ISIC_0000002.jpg", "truncated or not an image"),
        ("ISIC_0000003.jpg", "truncated or not an image"),
        ("ISIC_0000004_segmentation.png", "truncated"),
        ("ISIC_0000005.jpg", "mask missing"),
        ("ISIC_0000006_segmentation.png", "mask is empty"),
        ("ISIC_0000007_segmentation.png", "mask is full"),
        ("ISIC_0000008_segmentation.png", "not 0/255", "1 is read as lesion"),
        ("ISIC_0000009_segmentation.png", "not 0/255", "above 128"),
        ("ISIC_0000010_segmentation.png", "mask 48x32, image 96x64"),
        ("ISIC_0000011_segmentation.png", "mask without image"),
        ("ISIC_0000012 is in two splits", "Training_Data", "Validation_Data"),
        ("ISIC_0000012.jpg", "same file", "not known, stops training"),
        ("train ", "ISIC_0000013.jpg", "validation ", "ISIC_0000101.jpg", "near copy", "not known"),
        ("ISIC_0000014.jpg", "test ", "ISIC_0000201.jpg", "same file", "not known"),
        ("note", "the same file under 2 ids", "ISIC_0000015.jpg", "ISIC_0000016.jpg"),
        ("ISIC-2017_Validation_Part3_GroundTruth.csv", "row 2, ISIC_0000101", "both"),
        ("1 images of train have no label", "ISIC_0000017"),
        ("note", "Training_Part3", "2 labels have no image"),
    ):
        assert len(lines_with(text.rsplit("training cannot start", 1)[0], *words)) == 1, (words, text)
    assert "copies across splits: 3\n" in text
    last = text.splitlines()[-1]
    assert last.startswith("training cannot start: ")
    assert "ISIC_0000001.jpg" in last
    assert last.endswith("(and 5 more)")


def test_odd_masks_and_labels_alone_do_not_stop_segmentation(folder):
    save_mask(mask_path(folder, "train", 1), lesion(0, 1))
    mask_path(folder, "validation", 101).unlink()
    (folder / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(HEADER + "ISIC_0000001,2,0\n")
    report = inspect_folder(folder)
    assert report.can_start
    assert len(report.problems) == 3
    assert str(report).splitlines()[-1].startswith("training can start (segmentation only; classification: ")


@pytest.mark.parametrize(("split", "reason"), [("train", "training"), ("validation", "validation")])
def test_without_any_mask_training_cannot_start(folder, split, reason):
    shutil.rmtree(mask_path(folder, split, 1).parent)
    assert f"training cannot start: no {reason} image has a mask" in str(inspect_folder(folder))


def test_a_folder_without_masks_is_for_classification(tmp_path):
    root = make_synthetic(tmp_path / "sample", {"train": 8, "validation": 8, "test": 3}, (64, 64), seed=3)
    for folder in root.glob("*Part1_GroundTruth"):
        shutil.rmtree(folder)
    report = inspect_folder(root)
    assert report.can_start
    assert str(report).splitlines()[-1] == "training can start (classification only; segmentation: there are no masks)"
    next((root / "ISIC-2017_Training_Data").glob("*.jpg")).write_bytes(b"cut")
    assert not inspect_folder(root).can_start


def test_it_agrees_with_training_on_what_stops_it(folder, tmp_path_factory):
    """Whatever the inspection lets pass, `seg_main.py` starts with, and the other way round."""
    damages = {
        "nothing": (lambda: None, True),
        "training image without a mask, cut": (lambda: (mask_path(folder, "train", 1).unlink(), cut("train", 1)), True),
        "test image, cut": (lambda: cut("test", 201), False),
        "test image mended, id in two splits": (
            lambda: shutil.copy(image_path(folder, "train", 2), image_path(folder, "test", 2)),
            False,
        ),
    }

    def cut(split: str, number: int) -> None:
        image_path(folder, split, number).write_bytes(b"cut")

    for what, (damage, can_start) in damages.items():
        photograph(201).save(image_path(folder, "test", 201))
        damage()
        assert inspect_folder(folder).can_start == can_start, what
        try:
            data = segmentation_data(folder)
            seg_main.prepare_all(data, (32, 32), tmp_path_factory.mktemp("cache"))
            started = True
        except UserError:
            started = False
        assert started == can_start, what


def test_many_images_without_a_mask_take_one_line(folder):
    for number in range(300, 320):
        photograph(number).save(image_path(folder, "train", number))
    (line,) = lines_with(str(inspect_folder(folder)), "mask missing")
    assert "mask missing for 20 images" in line and "ISIC_0000300.jpg" in line


def test_no_folder_is_an_error_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")


def test_an_empty_folder_cannot_start(tmp_path):
    assert not inspect_folder(tmp_path).can_start


def test_a_known_copy_that_is_left_out_does_not_stop_training(folder):
    known = image_path(folder, "train", 12271)
    known.write_bytes(b"cut")
    report = inspect_folder(folder)
    assert report.can_start
    assert lines_with(str(report), "ISIC_0012271.jpg", "not an image")


@pytest.mark.parametrize("edit", ["quality", "shrunk", "colour and frame", "mirrored", "turned"])
def test_copies_of_a_real_photograph_are_found_however_edited(folder, isic2017_fullsize, edit):
    original = isic2017_fullsize / "ISIC-2017_Training_Data" / "ISIC_0000217.jpg"
    image = Image.open(original)
    shutil.copy(original, image_path(folder, "test", 217))
    if edit == "quality":
        content = encoded(image, "JPEG", quality=40)
    elif edit == "shrunk":
        content = encoded(image.resize((300, 200)), "JPEG")
    elif edit in ("mirrored", "turned"):
        how = Image.Transpose.FLIP_LEFT_RIGHT if edit == "mirrored" else Image.Transpose.ROTATE_90
        content = encoded(image.transpose(how).resize((300, 200)), "JPEG", quality=60)
    else:
        frame = image.crop((20, 15, image.width - 30, image.height - 10))
        red, green, blue = ImageEnhance.Contrast(frame).enhance(1.3).split()
        content = encoded(Image.merge("RGB", (red.point(lambda v: v * 0.7), green, blue)), "JPEG")
    Image.open(BytesIO(content)).save(image_path(folder, "train", 300))
    (copy,) = inspect_folder(folder).copies
    assert (copy.ids, copy.known, copy.exact) == (("ISIC_0000300", "ISIC_0000217"), False, False)
    assert copy.turned == (edit in ("mirrored", "turned"))


def test_real_originals(isic2017_fullsize):
    report = inspect_folder(isic2017_fullsize)
    assert report.can_start
    assert (report.problems, report.copies) == ([], [])
    assert report.splits["train"].classes == {"melanoma": 10, "seborrheic_keratosis": 0, "nevus": 26}
    assert max(report.splits["train"].sizes) == (2816, 2112)


def test_real_folder_holds_the_known_copies_and_no_others(isic2017):
    report = inspect_folder(isic2017)
    assert report.can_start
    assert report.problems == []
    found = {(c.splits[0], c.ids[0], c.splits[1], c.ids[1]) for c in report.copies}
    assert len(found) == 26
    # The other known ones are turned or reframed so strongly that thumbnails do not show it.
    assert found < set(KNOWN_COPIES)
    assert found >= set(KNOWN_COPIES[:10])
    assert any("1320 labels have no image" in note for note in report.notes)
