"""Images of other data sets to train on besides: read in their layouts, counted as ISIC 2017's classes, no leak."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from seg_main import main
from utils import UserError
from utils.config import configure
from utils.data.cache import prepare
from utils.data.copies import copies_between
from utils.data.extra import extra_samples, join_extra
from utils.data.isic import CLASSES, LEFT_OUT, OFFICIAL, Sample, read_split
from utils.data.synthetic import make_synthetic

# Files of a data set and their content, and the classes of its images "ISIC_0024306" to "ISIC_0024309".
LAYOUTS = {
    "HAM10000": (
        {
            "HAM10000_images_part_1/ISIC_0024306.jpg": "",
            "HAM10000_images_part_2/ISIC_0024307.jpg": "",
            "HAM10000_images_part_2/ISIC_0024308.jpg": "",
            "HAM10000_images_part_2/ISIC_0024309.jpg": "",
            "HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png": "",
            "HAM10000_metadata.csv": "lesion_id,image_id,dx,age\nHAM_1,ISIC_0024306,nv,80.0\nHAM_2,ISIC_0024307,mel,\n"
            "HAM_2,ISIC_0024308,bkl,5\nHAM_3,ISIC_0024309,df,5\n",
        },
        ["nevus", "melanoma", "seborrheic_keratosis", None],
    ),
    "ISIC 2018": (
        {
            "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg": "",
            "ISIC2018_Task3_Training_Input/ISIC_0024309.jpg": "",
            "ISIC2018_Task1-2_Training_Input/ISIC_0024309.jpg": "",
            "ISIC2018_Task1_Training_GroundTruth/ISIC_0024306_segmentation.png": "",
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": "image,MEL,NV,BCC\n"
            "ISIC_0024306,1.0,0.0,0.0\nISIC_0024309,0.0,0.0,1.0\n",
        },
        ["melanoma", "absent", "absent", None],
    ),
    "ISIC 2016": (
        {
            "ISBI2016_ISIC_Part3_Training_Data/ISIC_0024306.jpg": "",
            "ISBI2016_ISIC_Part3_Training_Data/ISIC_0024307.jpg": "",
            "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0024306_Segmentation.png": "",
            "ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "ISIC_0024306,benign\nISIC_0024307,malignant\n",
        },
        [None, "melanoma", "absent", "absent"],
    ),
    "a folder of one's own": (
        {
            "images/ISIC_0024306.png": "",
            "images/ISIC_0024307.png": "",
            "masks/ISIC_0024306.png": "",
            "labels.csv": "image_id,label\nISIC_0024306,Seborrheic keratosis\nISIC_0024307,wart\n",
        },
        ["seborrheic_keratosis", None, "absent", "absent"],
    ),
}


def read(root, masks=False, data=None, **settings):
    return extra_samples(configure("seg-b1", extra=(root,), **settings), data or {}, masks=masks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_data_set_is_read_in_its_layout(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    ids = [f"ISIC_{number:07}" for number in range(24306, 24310)]
    expected = dict(zip(ids, expected, strict=True))
    assert {sample.id: CLASSES[sample.label] for sample in read(tmp_path)} == {
        id_: name for id_, name in expected.items() if name not in (None, "absent")
    }
    assert {sample.id: CLASSES[sample.label] for sample in read(tmp_path, others="nevus")} == {
        id_: name or "nevus" for id_, name in expected.items() if name != "absent"
    }
    assert [sample.id for sample in read(tmp_path, masks=True)] == ids[:1]


def own_folder(root, rows):
    """rows: "id,label,group"."""
    (root / "images").mkdir(parents=True)
    for row in rows:
        (root / f"images/{row.partition(',')[0]}.png").touch()
    (root / "labels.csv").write_text("\n".join(["image_id,label,group", *rows]))
    return root


def test_what_is_in_the_data_or_the_challenges_other_sets_is_left_out_by_its_id(tmp_path):
    """Known copies of validation and test images too, which the data's own training images do not tell of."""
    own, copy = Sample("ISIC_0000001", tmp_path, None, 0), min(LEFT_OUT)
    ids = [own.id, "ISIC_0024306", min(OFFICIAL["validation"]), max(OFFICIAL["test"]), copy]
    root = own_folder(
        tmp_path / "one", [f"{id_},{label},{id_}" for id_, label in zip(ids, ["mel", *["nv"] * 4], strict=True)]
    )
    assert [sample.id for sample in read(root, data={"train": [own]})] == ["ISIC_0024306"]
    kept = read(root, data={"train": [own]}, keep_copies=True)
    assert [sample.id for sample in kept] == sorted(["ISIC_0024306", copy])
    with pytest.raises(UserError, match="nothing of it is left to train on"):
        read(root, data={"train": [own, Sample("ISIC_0024306", tmp_path, None, 0)]})
    with pytest.raises(UserError, match="have one id"):
        shutil.copytree(root, tmp_path / "again")
        extra_samples(configure("seg-b1", extra=(root, tmp_path / "again")), {}, masks=False)
    with pytest.raises(UserError, match="--others wart: no class here"):
        read(root, others="wart")


def test_a_group_that_is_validated_or_tested_on_is_left_out(tmp_path):
    root = own_folder(tmp_path, ["a,mel,", "b,nv,patient 2", "c,nv,patient 3"])
    groups = {"train": "patient 2", "validation": "", "test": "patient 3"}
    mine = {split: [Sample(split, root, None, 0, group)] for split, group in groups.items()}
    assert [sample.id for sample in read(root, data=mine)] == ["a", "b"]


def test_classes_of_ones_own_are_found_whatever_their_capitals(tmp_path):
    root = own_folder(tmp_path, ["a,MEL,1", "b,nv,2", "c,Wart,3"])
    for others, expected in (("OTHER", ["MEL", "Nv", "OTHER"]), (None, ["MEL", "Nv"])):
        classes = ("MEL", "Nv", "OTHER")
        assert [classes[sample.label] for sample in read(root, classes=classes, others=others)] == expected


@pytest.fixture
def drawn(tmp_path):
    """Synthetic data, and an extra folder of six photographs: two of its own, and four that are elsewhere as well."""
    make_synthetic(tmp_path / "data", {"train": 4, "validation": 2, "test": 2}, (96, 96), seed=1)
    make_synthetic(tmp_path / "more", {"train": 2, "validation": 1, "test": 1}, (96, 96), seed=2)
    images, masks = tmp_path / "extra/images", tmp_path / "extra/masks"
    images.mkdir(parents=True), masks.mkdir()
    mine = read_split(tmp_path / "more", "train")
    copied = [read_split(tmp_path / "data", split)[0] for split in ("train", "validation", "test")] + mine[:1]
    for number, sample in enumerate([*mine, *copied]):
        shutil.copy(sample.image, images / f"e{number}{sample.image.suffix}")
        shutil.copy(sample.mask or mine[0].mask, masks / f"e{number}.png")
    reencoded = Image.open(images / "e3.jpg")  # the validation image, mirrored, in other bytes
    reencoded.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images / "e3.jpg", quality=80)
    return tmp_path


def test_copies_of_any_split_and_of_each_other_are_left_out(drawn):
    data = {split: read_split(drawn / "data", split) for split in ("train", "validation", "test")}
    data["extra"] = read(drawn / "extra", masks=True, data=data)
    assert [sample.id for sample in data["extra"]] == [f"e{number}" for number in range(6)]
    caches = {split: prepare(samples, (96, 96), drawn / "cache") for split, samples in data.items()}
    joined = join_extra(caches, copies_between(caches))
    assert [sample.id for sample in joined.samples] == [sample.id for sample in data["train"]] + ["e0", "e1"]
    assert np.array_equal(joined.image(1), caches["train"].image(1))
    assert np.array_equal(joined.image(5), caches["extra"].image(1))


def test_a_run_keeps_what_it_was_trained_on_besides(drawn, undrawn):
    flags = ["-n", "mobilenet", "-p", "0", "--size", "32", "32", "--epochs", "1", "--batch-size", "2"]
    folders = ["--data", drawn / "data", "--output", drawn / "out", "--cache", drawn / "cache"]
    run = main([*flags, *map(str, folders), "--extra", str(drawn / "extra")])
    assert run.folder == drawn / "out/mobilenet_unet-scratch-extra/run0"
    settings = json.loads((run.folder / "config.json").read_text())["settings"]
    told = {name: settings[name] for name in ("extra", "extra_share", "others")}
    assert told == {"extra": ["extra"], "extra_share": 0.5, "others": None}
    assert settings["extra_images"].startswith("2 images") and settings["train_images"].startswith("4 images")
