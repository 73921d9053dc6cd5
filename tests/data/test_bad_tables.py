"""Bad label files, and images that are in the wrong split: refused with one line, warned about, or read rightly."""

import shutil
from pathlib import Path

import cv2
import numpy as np

from tests.data.bad_folder import (
    HEADER,
    Case,
    add_row,
    begins,
    bring,
    check_case,
    each,
    image,
    images,
    labels,
    photograph,
    pixels,
    row,
    save,
)  # fmt: skip

CSV = "ISIC-2017_Training_Part3_GroundTruth.csv: "
LOOSE = """seborrheic_keratosis, image_id,note,melanoma

0.0, isic_9000000,"a, b",1

"1","ISIC_9000001",,"0"

"""
METADATA = "ISIC-2017_Training_Data_metadata.csv"
TWO_ROWS = HEADER + "ISIC_9000000,1.0,0.0\nISIC_9000001,0,1\n"


def put(text: str, **options):
    return lambda root: labels(root).write_text(text, **options)


def edit(old: str, new: str, split: str = "train"):
    return lambda root: labels(root, split).write_text(labels(root, split).read_text().replace(old, new))


def melanoma_then_keratosis(found: list) -> bool:
    return [found[0].label, found[1].label] == [0, 1]


def bring_edited(root: Path) -> None:
    """A test image with details, and the same brighter and in another frame among the training images."""
    noise = np.random.default_rng(0).integers
    coarse, fine = (
        cv2.resize(noise(0, 256, (*side, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        for side in ((6, 8), (120, 160))
    )
    picture = cv2.addWeighted(coarse, 0.8, fine, 0.2, 0)
    save(image(root, "test"), picture, quality=95)
    bring(root, np.clip(picture[12:, :-16] * 0.8 + 20, 0, 255).astype(np.uint8), "ISIC_9000050")


def renamed_test_image(root: Path, split: str = "train", id_: str = "ISIC_9000050") -> None:
    bring(root, image(root, "test").read_bytes(), id_, split)


LABELS = [
    Case("byte-order mark", put("\ufeff" + TWO_ROWS), melanoma_then_keratosis, "read"),
    Case("semicolons", put(TWO_ROWS.replace(",", ";")), melanoma_then_keratosis, "read"),
    Case("line ends CR LF", put(TWO_ROWS, newline="\r\n"), melanoma_then_keratosis, "read"),
    Case("other order, spaces, lower case, quotes, a column more, empty lines", put(LOOSE), melanoma_then_keratosis,
        "read"),
    Case("a comma at the end of every row", put(TWO_ROWS.replace("0\n", "0,\n").replace("1\n", "1,\n")),
        melanoma_then_keratosis, "read"),
    Case("more cells than columns", lambda r: row(labels(r), 2, "ISIC_9000000,0,0,1"),
        CSV + "row 2, ISIC_9000000: more cells than columns", "read"),
    Case("a column is missing", edit(",melanoma", ",mel"), CSV + "no column melanoma in [", "cls"),
    Case("a column twice", edit("keratosis", "keratosis,melanoma"), CSV + "column melanoma is there a second time",
        "cls"),
    Case("UTF-16", put(TWO_ROWS, encoding="utf-16"), CSV + "not readable as a comma-separated text file", "cls"),
    Case("a cell of 200 kB", lambda r: row(labels(r), 2, "ISIC_9" * 33_000), CSV + "not readable as a comma", "cls"),
    Case("an id twice", lambda r: row(labels(r), 3, "isic_9000000,0,0"),
        CSV + "row 3, ISIC_9000000: is there a second time", "cls"),
    Case("an id that is none", lambda r: row(labels(r), 3, "ISIC_9000001.jpg,0,0"),
        CSV + "row 3, ISIC_9000001.JPG: image_id is 'ISIC_9000001.jpg', expected one like ISIC_0000000", "cls"),
    Case("an id without an image", lambda r: add_row(labels(r), "ISIC_9000099,0,0"),
        "train: 8 images, 1 of the 9 labelled images are not there (ISIC_9000099)", "cls", warns=True),
    Case("an id of another split's image", lambda r: add_row(labels(r), "ISIC_9200001,0,0"),
        CSV + "1 ids are images of another split: ISIC_9200001; remove their rows", "cls"),
    Case("an image without a label", lambda r: row(labels(r), 9, ""),
        CSV + "1 train images have no label here: ISIC_9000007; add or remove them", "cls"),
    Case("label nan", lambda r: row(labels(r), 2, "ISIC_9000000,nan,0"),
        CSV + "row 2, ISIC_9000000: melanoma is 'nan', expected 0 or 1", "cls"),
    Case("a row that ends early", lambda r: row(labels(r), 2, "ISIC_9000000,0"),
        CSV + "row 2, ISIC_9000000: seborrheic_keratosis is ''", "cls"),
    Case("both 1", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"),
        CSV + "row 2, ISIC_9000000: both melanoma and seborrheic_keratosis are 1", "cls"),
    Case("both 1, said", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"),
        "training can start (segmentation only; classification: …" + CSV + "row 2", "inspect", warns=True),
    Case("both 1, for segmentation", lambda r: row(labels(r), 2, "ISIC_9000000,1,1"), begins, "seg"),
    Case("not there", lambda r: labels(r).unlink(), "data: no labels of the train images", "cls"),
    Case("not there, test", lambda r: labels(r, "test").unlink(), "test: 3 images, no labels", "cls", warns=True),
    Case("no melanoma to validate by", edit("1.0,", "0.0,", "validation"),
        "Validation_Part3_GroundTruth.csv: no images of melanoma, so there is no AUC", "cls"),
    Case("an age that is none",
        lambda r: (r / METADATA).write_text("image_id,age_approximate,sex\nISIC_9000000,old,male\n"),
        METADATA + ": row 2, ISIC_9000000: age_approximate is 'old'", "inspect", warns=True),
]  # fmt: skip

SPLITS = [
    Case("no training image", lambda r: [path.unlink() for path in images(r).iterdir()],
        "data: no train image with a mask", "seg"),
    Case("no training folder", lambda r: shutil.rmtree(images(r)), "data: no train image", "cls inspect"),
    Case("no validation image", lambda r: shutil.rmtree(images(r, "validation")), "data: no validation image",
        "seg cls"),
    Case("no test image", lambda r: shutil.rmtree(images(r, "test")), "test: 0 images", "seg", warns=True),
    Case("an id in training and test", lambda r: bring(r, photograph(1), "ISIC_9200000"),
        "ISIC_9200000.jpg: 1 ids are both in train and in test: ISIC_9200000; take them out of one", "seg inspect"),
    Case("an id in training and test, labelled", lambda r: bring(r, photograph(1), "ISIC_9200000"),
        CSV + "1 ids are images of another split", "cls"),
    Case("an id in validation and test", lambda r: bring(r, photograph(1), "ISIC_9200000", "validation"),
        "ISIC_9200000.jpg: 1 ids are both in validation and in test", "seg"),
    Case("a test image renamed", renamed_test_image,
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (same file): 1 training images are copies of images of other splits",
        "seg cls inspect"),
    Case("a test image saved again", lambda r: bring(r, pixels(image(r, "test")), "ISIC_9000050"),
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (near copy, similarity 0.99…): 1 training images are copies", "seg"),
    Case("a test image with other brightness and frame", bring_edited,
        "ISIC_9000050.jpg = …ISIC_9200000.jpg: edited copy, similarity 0.9…; not known, take one of them out",
        "inspect", warns=True),
    Case("a test image mirrored", lambda r: bring(r, pixels(image(r, "test"))[:, ::-1].copy(), "ISIC_9000050"),
        "ISIC_9000050.jpg = …ISIC_9200000.jpg (turned or mirrored copy, similarity", "seg"),
    Case("a validation image turned by a quarter",
        lambda r: bring(r, np.rot90(pixels(image(r, "validation"))).copy(), "ISIC_9000050"),
        "ISIC_9000050.jpg = …ISIC_9100000.jpg (turned or mirrored copy, similarity", "cls"),
    Case("a test image renamed, to be kept", renamed_test_image,
        "training on 1 copies of images of other splits: …ISIC_9000050.jpg = …ISIC_9200000.jpg (same file)", "keep",
        warns=True),
    Case("a known copy, to be kept", lambda r: bring(r, photograph(1), "ISIC_0012271"),
        "training on 1 copies of images of other splits: known by id", "keep", warns=True),
    Case("a known copy", lambda r: bring(r, photograph(1), "ISIC_0012271"), "train: 8 images", "seg", warns=True),
    Case("a test image among the validation images", lambda r: renamed_test_image(r, "validation", "ISIC_9100050"),
        "ISIC_9100050.jpg = …ISIC_9200000.jpg (same file): 1 validation images are copies of test images", "seg",
        warns=True),
    Case("an official test id in training, no test folder",
        lambda r: (shutil.rmtree(images(r, "test")), bring(r, photograph(1), "ISIC_0012086")),
        "ISIC_0012086.jpg: 1 train images are of the challenge's test set: ISIC_0012086; take them out", "seg inspect"),
    Case("an official validation id in training", lambda r: bring(r, photograph(1), "ISIC_0001769"),
        "ISIC_0001769.jpg: 1 train images are of the challenge's validation set: ISIC_0001769", "cls"),
    Case("an official test id in validation", lambda r: bring(r, photograph(1), "ISIC_0016072", "validation"),
        "ISIC_0016072.jpg: 1 validation images are of the challenge's test set", "seg"),
    Case("ids above those of ISIC 2017", lambda r: next(r.glob("*.json")).unlink(),
        "16 images have ids above ISIC_0016072, the last of ISIC 2017", "seg inspect", warns=True),
]  # fmt: skip


@each(*LABELS)
def test_labels(case, entry, root, lines):
    check_case(case, entry, root, lines)


@each(*SPLITS)
def test_splits(case, entry, root, lines):
    check_case(case, entry, root, lines)
