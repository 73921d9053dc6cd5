"""Which images each task uses, what lies there twice, and what the folder's check says of the real ones."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.data.bad_folder import add_row, image, labels
from utils import UserError
from utils.data.cache import prepare
from utils.data.copies import copies_between
from utils.data.isic import (
    COPY_OF,
    KNOWN_COPIES,
    LAST_ID,
    LEFT_OUT,
    OFFICIAL,
    SPLITS,
    Sample,
    find_files,
    read_split,
)
from utils.data.splits import classification_data, refuse_copies, segmentation_data


def counts(data: dict) -> dict[str, int]:
    return {split: len(samples) for split, samples in data.items()}


def test_real_data_with_the_1320_extra_labels(isic2017, lines):
    """Their images are absent: said in one line, left out; the copies of test images are no absent ones."""
    data = classification_data(isic2017)
    assert counts(data) == {"train": 1969, "validation": 150, "test": 600}
    said = "train: 1969 images, 31 copies of validation or test images left out, 1320 of the 3320 labelled images are "
    assert sum(line.startswith(said) for line in lines) == 1 and "validation: 150 images" in lines
    whole = classification_data(isic2017, keep_copies=True)
    for split, by_class in (("train", [374, 254, 1372]), ("validation", [30, 42, 78])):
        assert [sum(sample.label == label for sample in whole[split]) for label in range(3)] == by_class
        assert all(sample.mask is not None for sample in whole[split])
    assert all(sample.label is None and sample.mask is None for sample in data["test"])
    assert {sample.id for sample in whole["train"]} - {sample.id for sample in data["train"]} == LEFT_OUT
    with pytest.raises(UserError, match=r"Aug_Part3.*1320 of the 3320 .*\(ISIC_0000005.*without --require-all"):
        classification_data(isic2017, require_all=True)


def test_augmented_labels_come_first_and_their_images_are_used_where_they_are(root, lines):
    extra = labels(root).with_name("ISIC-2017_Training_Aug_Part3_GroundTruth.csv")
    shutil.copy(labels(root), extra)
    add_row(extra, "ISIC_0000001,1,0\nISIC_0000002,0,1")
    (root / "Aug_Training_Data").mkdir()
    shutil.copy(image(root), root / "Aug_Training_Data" / "ISIC_0000002.jpg")
    image(root, index=1).unlink()
    data = classification_data(root)
    assert any(line.endswith(" labelled images are not there (ISIC_0000001, ISIC_9000001)") for line in lines)
    assert {sample.id: sample.label for sample in data["train"]}["ISIC_0000002"] == 1 and len(data["train"]) == 8


def test_the_official_ids_are_those_of_the_real_folder(isic2017):
    ids = {split: find_files(isic2017, split).images.keys() for split in SPLITS}
    for split, count in (("validation", 150), ("test", 600)):
        assert OFFICIAL[split] == ids[split] and len(OFFICIAL[split]) == count
    assert max(OFFICIAL["test"]) == f"ISIC_{LAST_ID:07}"
    assert all(i in ids[a] and j in ids[b] for a, i, b, j in KNOWN_COPIES) and len(KNOWN_COPIES) == 33
    pairs = {(i, j): a for j, i in COPY_OF.items() for a in ids if {i, j} <= ids[a]}
    assert Counter(pairs.values()) == {"train": 9, "test": 2} and len(COPY_OF) == len(KNOWN_COPIES) + 11
    assert len({*COPY_OF, *COPY_OF.values()}) == 2 * len(COPY_OF)  # no photograph is in two pairs


def search(data: dict, folder: Path, size: tuple[int, int]) -> list:
    """As a run does that starts: training images are prepared larger than the others."""
    larger = (size[0] * 5 // 4, size[1] * 5 // 4)
    return copies_between({split: prepare(data[split], larger if split == "train" else size, folder) for split in data})


def test_mirrored_copies_of_real_images_are_found_and_no_others(isic2017, tmp_path):
    test, mirrored = read_split(isic2017, "test")[::20], []
    for sample in test:
        path = tmp_path / f"ISIC_9{len(mirrored):06}.png"
        Image.open(sample.image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        mirrored.append(Sample(path.stem, path, None, None))
    data = {"train": mirrored, "validation": read_split(isic2017, "validation")[::15], "test": test}
    found = search(data, tmp_path / "cache", (64, 48))
    expected = {(one.id, other.id, True) for one, other in zip(mirrored, test, strict=True)}
    assert {(*copy.ids, copy.turned) for copy in found} == expected


def test_a_start_raises_no_false_alarm_and_counts_the_known_copies_that_are_kept(isic2017, tmp_path, lines):
    known = {id_ for copy in KNOWN_COPIES for id_ in (copy[1], copy[3])}
    data = segmentation_data(isic2017, keep_copies=True)
    data = {split: [*data[split][::25], *(each for each in data[split] if each.id in known)] for split in data}
    found = search(data, tmp_path, (96, 96))
    assert len(found) >= 8 and all(copy.known for copy in found)
    refuse_copies(found, data, keep_copies=True)
    (warning,) = [line for line in lines if "copies of images" in line]
    assert warning.startswith("training on 31 copies of images of other splits: ") and "ISIC_0012175.jpg = " in warning
