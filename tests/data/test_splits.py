"""Which images each task uses, and what stops it: labels and images that do not belong together."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import seg_main
from utils import UserError
from utils.data import copies
from utils.data.isic import LEFT_OUT, Sample, find_files, read_split
from utils.data.splits import LAST_ID, OFFICIAL, classification_data, refuse_copies, segmentation_data
from utils.data.synthetic import make_synthetic

HEADER = "image_id,melanoma,seborrheic_keratosis\n"


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    counts = {"train": 8, "validation": 8, "test": 3}
    return make_synthetic(tmp_path_factory.mktemp("data") / "sample", counts, (64, 64), seed=3)


@pytest.fixture
def root(sample, tmp_path) -> Path:
    return shutil.copytree(sample, tmp_path / "data")


def labels(root: Path, split: str = "Training") -> Path:
    return root / f"ISIC-2017_{split}_Part3_GroundTruth.csv"


def lines(caplog) -> list[str]:
    return [record.message for record in caplog.records]


def test_real_data_with_the_1320_extra_labels(isic2017, caplog):
    """Their images are absent: said in one line, left out; the copies of test images are no absent ones."""
    caplog.set_level("INFO", "isic2017")
    data, absent = classification_data(isic2017)
    assert {split: len(samples) for split, samples in data.items()} == {"train": 1969, "validation": 150, "test": 600}
    assert {split: len(ids) for split, ids in absent.items()} == {"train": 1320, "validation": 0}
    assert (
        sum("31 copies of validation or test images left out, 1320 of the 3320 labelled" in x for x in lines(caplog))
        == 1
    )
    by_class = [sum(sample.label == label for sample in data["validation"]) for label in range(3)]
    assert by_class == [30, 42, 78]
    assert all(sample.label is None for sample in data["test"])
    whole, _ = classification_data(isic2017, keep_copies=True)
    assert {sample.id for sample in whole["train"]} - {sample.id for sample in data["train"]} == LEFT_OUT
    with pytest.raises(UserError, match=r"Aug_Part3.*1320 of the 3320 .*\(ISIC_0000005.*without --require-all"):
        classification_data(isic2017, require_all=True)


def test_augmented_labels_come_first_and_their_images_are_used_where_they_are(root):
    extra = labels(root).with_name("ISIC-2017_Training_Aug_Part3_GroundTruth.csv")
    extra.write_text(labels(root).read_text() + "ISIC_0000001,1,0\nISIC_0000002,0,1\n")
    image = next((root / "ISIC-2017_Training_Data").glob("*.jpg"))
    (root / "Aug_Training_Data").mkdir()
    shutil.copy(image, root / "Aug_Training_Data" / "ISIC_0000002.jpg")
    data, absent = classification_data(root)
    assert absent["train"] == ["ISIC_0000001"]
    assert {sample.id: sample.label for sample in data["train"]}["ISIC_0000002"] == 1 and len(data["train"]) == 9


def test_test_labels_may_be_absent(root):
    labels(root, "Test_v2").unlink()
    assert [sample.label for sample in classification_data(root)[0]["test"]] == [None] * 3


def replace_row(path: Path, row: int, text: str) -> None:
    rows = path.read_text().splitlines()
    rows[row] = text
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    "fault,message",
    [
        (lambda r: labels(r).unlink(), "no labels of the train images"),
        (lambda r: labels(r, "Validation").unlink(), "no labels of the validation images"),
        (
            lambda r: replace_row(labels(r), 2, "ISIC_9000001,1,1"),
            r"Training_Part3.*row 3, ISIC_9000001: both melanoma",
        ),
        (lambda r: replace_row(labels(r), 2, "ISIC_9000000,0,0"), r"row 3: ISIC_9000000 is there a second time"),
        (
            lambda r: replace_row(labels(r), 2, "lesion 5,0,0"),
            r"row 3: image_id is 'lesion 5', expected one like ISIC_",
        ),
        (lambda r: replace_row(labels(r), 2, "ISIC_9000007,yes,0"), r"row 3, ISIC_9000007: melanoma is 'yes'"),
        (lambda r: replace_row(labels(r), 8, ""), r"1 train images have no label here: ISIC_9000007"),
        (
            lambda r: labels(r).write_text(labels(r).read_text() + "ISIC_9200001,0,0\n"),
            r"1 ids are images of another split: ISIC_9200001",
        ),
        (
            lambda r: shutil.copy(next((r / "ISIC-2017_Training_Data").glob("*.jpg")), r / "ISIC-2017_Test_v2_Data"),
            r"ids are images of another split: ISIC_90000",
        ),
        (
            lambda r: labels(r, "Validation").write_text(labels(r, "Validation").read_text().replace("1.0,", "0.0,")),
            "Validation_Part3.*no images of melanoma, so there is no AUC",
        ),
    ],
)
def test_what_does_not_belong_together_is_named_and_refused(root, fault, message):
    fault(root)
    with pytest.raises(UserError, match=message) as caught:
        classification_data(root)
    assert "\n" not in str(caught.value)


def test_labels_without_images_are_said(root, caplog):
    caplog.set_level("INFO", "isic2017")
    gone = sorted((root / "ISIC-2017_Training_Data").glob("*.jpg"))[:2]
    for path in gone:
        path.unlink()
    data, absent = classification_data(root)
    assert absent["train"] == [path.stem for path in gone] and len(data["train"]) == 6
    assert any("train: 6 images, 2 of the 8 labelled images are not there (ISIC_" in line for line in lines(caplog))


def test_segmentation_keeps_images_with_a_mask(root, caplog):
    caplog.set_level("INFO", "isic2017")
    next((root / "ISIC-2017_Training_Part1_GroundTruth").glob("*.png")).unlink()
    data = segmentation_data(root)
    assert [len(data[split]) for split in data] == [7, 8, 3]
    assert "train: 7 images, 1 more left out because they have no mask" in lines(caplog)


def test_the_official_ids_are_those_of_the_real_folder(isic2017):
    for split, count in (("validation", 150), ("test", 600)):
        assert OFFICIAL[split] == find_files(isic2017, split).images.keys() and len(OFFICIAL[split]) == count
    assert max(OFFICIAL["test"]) == f"ISIC_{LAST_ID:07}"


def search(root: Path, cache: Path, size: tuple[int, int] = (96, 96), keep_copies: bool = False) -> None:
    """As `seg_main.py` does before it trains."""
    data = segmentation_data(root, keep_copies=keep_copies)
    caches = seg_main.prepare_all(data, size, cache)
    refuse_copies(copies.copies_between(caches), data, keep_copies=keep_copies)


def test_the_real_data_raise_no_false_alarm_and_are_searched_once(isic2017, tmp_path, monkeypatch, caplog):
    search(isic2017, tmp_path)
    assert (tmp_path / "copies.json").is_file()
    monkeypatch.setattr(copies, "find_copies", lambda *_: pytest.fail("the same images were searched again"))
    search(isic2017, tmp_path)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("size", [(33, 33), (96, 96), (168, 112)])
def test_mirrored_copies_are_found_at_any_size(isic2017, tmp_path, size):
    """Training images are prepared larger than the others, and the thumbnails of both must fit all the same."""
    data = {split: read_split(isic2017, split, with_labels=False) for split in ("validation", "test")}
    mirrored = []
    for sample in data["test"][::6]:
        path = tmp_path / f"ISIC_{len(mirrored):07}.png"
        Image.open(sample.image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        mirrored.append(Sample(path.stem, path, None, None))
    caches = seg_main.prepare_all({"train": mirrored} | data, size, tmp_path / "cache")
    found = {copy.ids[0] for copy in copies.copies_between(caches) if copy.splits == ("train", "test")}
    assert found == {sample.id for sample in mirrored}


@pytest.mark.parametrize("size", [(32, 32), (168, 112)])
def test_the_search_finds_the_same_copies_at_any_size_and_twice(isic2017, tmp_path, caplog, size):
    for _ in range(2):
        search(isic2017, tmp_path, size, keep_copies=True)
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "ISIC_0012175.jpg = " in warning and "training on 24 copies of images of other splits" in warning
        caplog.clear()


def test_the_search_decodes_nothing_but_look_alikes(root, tmp_path, monkeypatch):
    """The prepared images are enough, and each original was decoded once for them."""
    monkeypatch.setattr(copies, "read_image", lambda *_: pytest.fail("an original was decoded again"))
    shutil.copy(
        next((root / "ISIC-2017_Test_v2_Data").glob("*.jpg")), root / "ISIC-2017_Training_Data/ISIC_9000000.jpg"
    )
    with pytest.raises(UserError, match=r"ISIC_9000000.jpg = .*same file"):
        search(root, tmp_path / "cache")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "damaged entries", "other positions"])
def test_a_damaged_memory_of_the_search_is_done_without(root, tmp_path, content):
    shutil.copy(
        next((root / "ISIC-2017_Test_v2_Data").glob("*.jpg")), root / "ISIC-2017_Training_Data/ISIC_9000000.jpg"
    )
    index = tmp_path / "cache/copies.json"
    for _ in range(2):
        with pytest.raises(UserError, match=r"ISIC_9000000.jpg = .*same file"):
            search(root, tmp_path / "cache")
        damage = {"damaged entries": [[1, "x"]], "other positions": [["train", "test", 8, 10**6, 1.0, True, False]]}
        known = json.loads(index.read_text())
        index.write_text(json.dumps(dict.fromkeys(known, damage[content])) if content in damage else content)


def test_what_is_known_of_stores_that_are_gone_is_forgotten(root, tmp_path):
    search(root, tmp_path)
    (key,) = json.loads((tmp_path / "copies.json").read_text())
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    search(root, tmp_path, (128, 96))
    (other,) = json.loads((tmp_path / "copies.json").read_text())
    assert other != key


def test_edited_copies_are_found_again_from_the_memory_of_the_search(root, tmp_path, monkeypatch):
    """Keypoints decide between images that resemble each other; they are counted once."""
    counted, count = [], copies._keypoints
    monkeypatch.setattr(copies, "_keypoints", lambda path: counted.append(path) or count(path))
    (image, *_) = sorted((root / "ISIC-2017_Test_v2_Data").glob("*.jpg"))
    parts = [np.random.default_rng(0).integers(0, 256, (*side, 3), dtype=np.uint8) for side in ((6, 8), (120, 160))]
    coarse, fine = (cv2.resize(part, (640, 480), interpolation=cv2.INTER_CUBIC) for part in parts)
    photograph = cv2.addWeighted(coarse, 0.8, fine, 0.2, 0)
    Image.fromarray(photograph).save(image, quality=95)
    brighter = np.clip(photograph[12:, :-16] * 0.8 + 20, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(root / "ISIC-2017_Training_Data/ISIC_9000000.jpg")
    for _ in range(2):
        with pytest.raises(UserError, match=r"ISIC_9000000.jpg = .*near copy, similarity 0.9[0-8]"):
            search(root, tmp_path / "cache")
    assert len(counted) == 2
